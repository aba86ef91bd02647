"""The files of a probe: its numbers as JSON, and its figures."""

from collections.abc import Sequence
from pathlib import Path

from jroute.lm import LanguageModel
from jroute.probe.effects import Probe
from jroute.probe.plots import plot_probe
from jroute.probe.text import probe_numbers
from jroute.tasks import Split
from jroute.utils.files import write_json
from jroute.utils.keys import stored
from jroute.utils.together import written_together


def write_probe(
    folder: Path, probe: Probe, lm: LanguageModel, split: Split, prompts: Sequence[Sequence[int]]
) -> list[Path]:
    """Write ``probe.json`` and the figures, and return their paths.

    Args:
        folder: Where to write; made if missing.
        probe: What was measured.
        lm: The model it was measured on.
        split: The split of the prompts.
        prompts: Their tokens.
    """
    content = {
        "model": lm.fingerprint,
        "routing": stored(lm.routing.config),
        "split": split,
        "prompts": len(prompts),
        "tokens": sum(map(len, prompts)),
        **probe_numbers(probe, lm.routing),
    }
    with written_together(folder, "probe") as partial:
        write_json(partial / "probe.json", content, indent=None)
        plots = plot_probe(probe, lm.routing, partial)
    return [folder / "probe.json", *(folder / plot.name for plot in plots)]
