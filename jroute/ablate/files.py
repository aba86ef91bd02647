"""The files of an ablation: its cells as JSON, the table as text, and the plot."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jroute.ablate.ablation_run import AblationRun, format_table
from jroute.ablate.plots import plot_ablation
from jroute.utils.files import write_text
from jroute.utils.machine import describe_machine
from jroute.utils.secrets import redacted
from jroute.utils.together import written_together


def write_ablation(
    ablation: AblationRun, rows: Sequence[dict[str, Any]], command: str
) -> list[Path]:
    """Write the table, its numbers and its plot to the ablation's folder; return their paths.

    Args:
        ablation: The ablation.
        rows: Its cells, as ``AblationRun.rows`` gives them.
        command: The command line that made them.
    """
    content = {
        "command": redacted(command),
        "model": ablation.run.base.fingerprint,
        "split": ablation.grid.split,
        "left_out": ablation.impossible,
        "machine": describe_machine(),
    }
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    head = json.dumps(content, indent=1).removesuffix("\n}")
    names = [f"ablation.{end}" for end in ("txt", "json", "png")]
    with written_together(ablation.folder, "ablation") as partial:
        text, numbers, plot = (partial / name for name in names)
        write_text(text, f"{format_table(rows)}\n")
        write_text(numbers, f'{head},\n "cells": [\n  {lines}\n ]\n}}\n')
        plot_ablation(rows, plot)
    return [ablation.folder / name for name in names]
