"""A run's own splits as tasks of lm-evaluation-harness."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jroute.tasks import Problem
from jroute.utils.disk import make_folder
from jroute.utils.files import write_text
from jroute.utils.yaml_files import read_yaml, yaml_text

_TEMPLATE = Path(__file__).with_name("split.yaml")


def write_split(
    name: str,
    problems: Sequence[Problem],
    messages: Sequence[str],
    generation_kwargs: Mapping[str, Any],
    folder: Path,
) -> Path:
    """Write problems as a task, ``<name>.jsonl`` and ``<name>.yaml``; return the latter.

    Args:
        name: Name of the task.
        problems: The problems.
        messages: The user's message of each. The chat template and the system message are arguments
            of lm-eval's call, not of a task.
        generation_kwargs: The decoding as lm-eval's generation arguments.
        folder: Where both files go.
    """
    make_folder(folder)
    rows = [
        {"id": p.id, "question": p.question, "message": message, "answer": p.answer}
        for p, message in zip(problems, messages, strict=True)
    ]
    data, file = folder / f"{name}.jsonl", folder / f"{name}.yaml"
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.absolute())}},
        "generation_kwargs": dict(generation_kwargs),
        **read_yaml(_TEMPLATE),
    }
    write_text(data, "".join(json.dumps(row) + "\n" for row in rows))
    write_text(file, yaml_text(task))
    return file
