"""Tasks of lm-evaluation-harness: its own with local data, those that ship here, a run's splits.

=======================  ===============================================================
``shipped/``             tasks; ``lm-eval run --include_path`` takes the folder as well
``filters``, ``splits``  how answers are read; a run's own splits as tasks
``prompting``            a task's own prompt as the prompt of an experiment
=======================  ===============================================================
"""

import contextlib
import difflib
import functools
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks import TaskManager

from jroute.tasks.benchmarks import filters as filters  # registers them
from jroute.utils.errors import UserError
from jroute.utils.files import atomic_write, write_text

LOCAL_DATA = {"gsm8k": "openai/gsm8k"}
"""Folders of local data, and the hub's name for what is in them."""

OFFICIAL = Path(lm_eval.tasks.__file__).parent
SHIPPED = Path(__file__).with_name("shipped")

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


def find_tasks(
    names: Sequence[str],
    include: str | Path | None = None,
    metadata: dict[str, Any] | None = None,
) -> tuple[list[str], TaskManager]:
    """Where tasks of these names (or task files) are, and a manager that loads them.

    Looked for among those of ``include``, then those that ship here, then lm-eval's own.

    lm-eval parses all of its many thousand YAML files to find a name, which takes long. A plain
    task is found by looking for its name in their text; only groups, tags and patterns need the
    index.

    Args:
        names: Of tasks, groups or tags; patterns with ``*``; or paths of YAML files.
        include: Another folder with tasks, as lm-eval's ``--include_path``.
        metadata: What lm-eval is to hand to tasks, as its ``--metadata``.

    Raises:
        UserError: There is no such task.
    """
    if include is not None and not Path(include).is_dir():
        raise UserError(f"--include_path: there is no folder {include}")
    roots = [OFFICIAL, SHIPPED, *([Path(include)] if include is not None else [])]
    texts: dict[Path, str] = {}
    defined: dict[str, list[Path]] = {}
    for root in roots:
        here: dict[str, list[Path]] = {}
        found_texts = _official_texts() if root == OFFICIAL else _texts(root)
        texts.update(found_texts)
        for file, text in found_texts.items():
            for match in _TASK.finditer(text):
                here.setdefault(match["name"], []).append(file.absolute())
        defined.update(here)  # the later folder wins, as it does for lm-eval
    specs = []
    for name in names:
        files = defined.get(name, [])
        if Path(name).suffix == ".yaml":
            files = [Path(name).absolute()]
            if not files[0].is_file():
                raise UserError(f"there is no task file {name}; check the path")
        elif not files and "*" not in name:
            listed = re.compile(r"^[ \t-]*((tag|group):[ \t]*)?" + _NAME % re.escape(name), re.M)
            if not any(name in text and listed.search(text) for text in texts.values()):
                near = difflib.get_close_matches(name, list(defined), n=1, cutoff=0.7)
                hint = f"did you mean {near[0]}?" if near else "see lm-eval ls tasks"
                raise UserError(f"lm-eval has no task named {name!r}; {hint}")
        specs.append(str(files[0]) if len(files) == 1 else name)
    if all(Path(spec).suffix == ".yaml" for spec in specs):
        return specs, TaskManager(include_defaults=False, metadata=metadata)
    manager = TaskManager(include_path=list(map(str, roots[1:])), metadata=metadata)
    found: dict[str, None] = {}
    for spec in specs:
        matched = [spec] if Path(spec).suffix == ".yaml" else manager.match_tasks([spec])
        if not matched:
            raise UserError(f"lm-eval has no task named {spec!r}; see lm-eval ls tasks")
        found.update(dict.fromkeys(matched))
    return list(found), manager


def _texts(root: Path) -> dict[Path, str]:
    """The YAML files below a folder."""
    return {file: file.read_text(encoding="utf-8") for file in sorted(root.rglob("*.yaml"))}


@functools.cache
def _official_texts() -> dict[Path, str]:
    return _texts(OFFICIAL)


def load_tasks(manager: TaskManager, specs: Sequence[Any]) -> list[Any]:
    """The tasks and groups of these names, files or definitions, with their data."""
    found: list[Any] = []
    for spec in specs:
        loaded = manager.load([spec])
        group = loaded.get("groups", {}).get(spec) if isinstance(spec, str) else None
        found += loaded["tasks"].values() if group is None else [group]
    return found


@contextlib.contextmanager
def local_data(root: Path | None, folder: Path) -> Iterator[None]:
    """Put local data where ``datasets`` looks before it asks the hub: ``./<owner>/<name>``.

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
        partly = len(missing) < len(sources) or not (root / "svamp").is_dir()
        if missing and given and partly:
            raise UserError(f"{missing[0]} is missing; give a folder that holds it with --data")
        place = folder / hub_name
        if missing:
            shutil.rmtree(place, ignore_errors=True)  # an earlier run's, not the hub's
            continue
        place.mkdir(parents=True, exist_ok=True)
        for source in sources:
            with atomic_write(place / source.name) as temporary:
                shutil.copy2(source, temporary)  # with its time: datasets keeps what it made of it
        write_text(place / "README.md", _README)
    with contextlib.chdir(folder):
        yield
