"""Tasks for lm-evaluation-harness: a run's own splits, and lm-eval's own, with local data.

Importing this registers the filter ``jroute_answer``, which ``split.yaml`` uses, with lm-eval.
"""

import contextlib
import difflib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lm_eval.filters
import lm_eval.tasks
import yaml
from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_filter
from lm_eval.tasks import TaskManager

from jroute.errors import UserError
from jroute.files import replacing
from jroute.generate.decoding import Decoding
from jroute.tasks import Problem
from jroute.tasks.answers import parse_answer
from jroute.tasks.prompts import PromptConfig, user_message

LOCAL_DATA = {"gsm8k": "openai/gsm8k"}
"""Folders of local data, and the hub's name for what is in them."""

_TEMPLATE = Path(__file__).with_name("split.yaml")
_README = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: train.jsonl}
  - {split: test, path: test.jsonl}
---
"""
_NAME = r"""["']?(?P<name>%s)["']?[ \t]*(?:\#.*)?$"""
_TASK = re.compile(r"^task:[ \t]*" + _NAME % r"[\w.-]+", re.MULTILINE)


@register_filter("jroute_answer")
class AnswerFilter(Filter):
    """Reads answers as training does: canonical numbers, ``[invalid]`` where there is none."""

    def apply(self, resps: Iterable[Any], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """Replaces every response of every document by its answer."""
        return [[self._answer(text) for text in texts] for texts in resps]

    @staticmethod
    def _answer(text: str) -> str:
        parsed = parse_answer(str(text), truncated=getattr(text, "truncated", False))
        return parsed.text or "[invalid]"


def write_split(
    name: str,
    problems: Sequence[Problem],
    prompt: PromptConfig,
    decoding: Decoding,
    folder: Path,
) -> Path:
    """Writes problems as a task, ``<name>.jsonl`` and ``<name>.yaml``; returns the latter.

    Where ``prompt`` has a chat or a system message, lm-eval must be told so as well: they are
    arguments of a call, not of a task.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": p.id, "message": user_message(p.question, prompt), "answer": p.answer}
        for p in problems
    ]
    data, file = folder / f"{name}.jsonl", folder / f"{name}.yaml"
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data.absolute())}},
        "generation_kwargs": {
            "until": list(decoding.stop),
            "max_gen_toks": decoding.max_new_tokens,
            "do_sample": decoding.temperature > 0,
            "temperature": decoding.temperature,
            "top_k": decoding.top_k,
            "top_p": decoding.top_p,
        },
        **yaml.safe_load(_TEMPLATE.read_text(encoding="utf-8")),
    }
    _write(data, "".join(json.dumps(row) + "\n" for row in rows))
    _write(file, yaml.safe_dump(task, sort_keys=False))
    return file


def find_tasks(names: Sequence[str]) -> tuple[list[str], TaskManager]:
    """Where lm-eval's tasks of these names (or task files) are, and a manager that loads them.

    lm-eval parses all of its many thousand YAML files to find a name, which takes long. A plain
    task is found by looking for its name in their text; only groups and tags need the index.

    Raises:
        UserError: There is no such task.
    """
    root = Path(lm_eval.tasks.__file__).parent
    texts = {file: file.read_text(encoding="utf-8") for file in sorted(root.rglob("*.yaml"))}
    defined: dict[str, list[Path]] = {}
    for file, text in texts.items():
        for match in _TASK.finditer(text):
            defined.setdefault(match["name"], []).append(file)
    specs = []
    for name in names:
        files = defined.get(name, [])
        if Path(name).suffix == ".yaml":
            files = [Path(name).absolute()]
            if not files[0].is_file():
                raise UserError(f"there is no task file {name}; check the path")
        elif not files:
            listed = re.compile(r"^[ \t-]*((tag|group):[ \t]*)?" + _NAME % re.escape(name), re.M)
            if not any(name in text and listed.search(text) for text in texts.values()):
                near = difflib.get_close_matches(name, list(defined), n=1, cutoff=0.7)
                hint = f"did you mean {near[0]}?" if near else "see lm-eval ls tasks"
                raise UserError(f"lm-eval has no task named {name!r}; {hint}")
        specs.append(str(files[0]) if len(files) == 1 else name)
    plain = all(Path(spec).suffix == ".yaml" for spec in specs)
    return specs, TaskManager(include_defaults=not plain)


def load_tasks(manager: TaskManager, specs: Sequence[str]) -> list[Any]:
    """The tasks and groups of these names or files, with their data."""
    found: list[Any] = []
    for spec in specs:
        loaded = manager.load([spec])
        groups = loaded.get("groups", {})
        found += [groups[spec]] if spec in groups else loaded["tasks"].values()
    return found


@contextlib.contextmanager
def local_data(root: Path | None, folder: Path) -> Iterator[None]:
    """Puts local data where ``datasets`` looks before it asks the hub: ``./<owner>/<name>``.

    Within the context the working directory is ``folder``.

    Args:
        root: Folder with ``gsm8k/train.jsonl`` and ``gsm8k/test.jsonl``; ``None`` takes
            ``$JROUTE_DATA``, if it has them.
        folder: Where to put them, in the hub's layout.

    Raises:
        UserError: ``root`` does not hold what it should.
    """
    given = root is not None
    root = root or Path(os.environ.get("JROUTE_DATA") or folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, hub_name in LOCAL_DATA.items():
        sources = [root / name / f"{split}.jsonl" for split in ("train", "test")]
        missing = [source for source in sources if not source.is_file()]
        if missing and given:
            raise UserError(f"{missing[0]} is missing; give a folder that holds it with --data")
        place = folder / hub_name
        if missing:
            shutil.rmtree(place, ignore_errors=True)  # an earlier run's, not the hub's
            continue
        place.mkdir(parents=True, exist_ok=True)
        for source in sources:
            with replacing(place / source.name) as temporary:
                shutil.copy2(source, temporary)  # with its time: datasets keeps what it made of it
        _write(place / "README.md", _README)
    with contextlib.chdir(folder):
        yield


def _write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
