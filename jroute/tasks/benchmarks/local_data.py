"""Local data where ``datasets`` looks before it queries the hub."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from jroute.utils.disk import make_folder
from jroute.utils.errors import UserError
from jroute.utils.files import atomic_write, write_text

LOCAL_DATA = {"gsm8k": "openai/gsm8k"}
"""Folders of local data, and the hub's name for what is in them."""

_SPLITS = ("train", "test")

_README = """---
configs:
- config_name: main
  data_files:
  - {split: train, path: train.jsonl}
  - {split: test, path: test.jsonl}
---
"""


@contextlib.contextmanager
def data_folder(root: Path | None) -> Iterator[None]:
    """Set ``$JROUTE_DATA``, which tasks read when they load their data, and restore it afterwards.

    Args:
        root: Folder with local data; ``None`` leaves the variable as it is.
    """
    before = os.environ.get("JROUTE_DATA")
    if root is not None:
        os.environ["JROUTE_DATA"] = str(root.absolute())
    try:
        yield
    finally:
        if before is not None:
            os.environ["JROUTE_DATA"] = before
        elif root is not None:
            os.environ.pop("JROUTE_DATA", None)


@contextlib.contextmanager
def local_data(root: Path | None, folder: Path) -> Iterator[None]:
    """Copy local data to ``<folder>/<owner>/<name>``, and load them in place of the hub's.

    Every other data set loads as ever: relative paths are relative to the working directory.

    Args:
        root: Folder with ``gsm8k/train.jsonl`` and ``gsm8k/test.jsonl``; ``None`` takes
            ``$JROUTE_DATA``, if it has them.
        folder: Where to copy them to, in the hub's layout.

    Raises:
        UserError: ``root`` lacks a file.
    """
    source = root or Path(os.environ.get("JROUTE_DATA") or folder)
    make_folder(folder)
    copies: dict[str, str] = {}
    for name, hub_name in LOCAL_DATA.items():
        copy = folder.absolute() / hub_name
        if _copy(source, name, copy, required=root is not None):
            copies[hub_name] = str(copy)
    load = datasets.load_dataset  # lm-eval looks it up in the module at every call

    def load_local(path: str, *args: Any, **kwargs: Any) -> Any:
        return load(copies.get(path, path), *args, **kwargs)

    datasets.load_dataset = load_local
    try:
        yield
    finally:
        datasets.load_dataset = load


def _copy(root: Path, name: str, target: Path, *, required: bool) -> bool:
    """Copy the files of a data set, and return whether there are any.

    Without them, what an earlier copy left is removed.
    """
    files = [root / name / f"{split}.jsonl" for split in _SPLITS]
    missing = [file for file in files if not file.is_file()]
    incomplete = len(missing) < len(files) or not (root / "svamp").is_dir()
    if missing and required and incomplete:
        raise UserError(f"{missing[0]} is missing; give a folder that holds it with --data")
    if missing:
        shutil.rmtree(target, ignore_errors=True)
        return False
    make_folder(target)
    for file in files:
        with atomic_write(target / file.name, file.stat().st_size) as temporary:
            shutil.copy2(file, temporary)  # with its time, by which datasets caches
    write_text(target / "README.md", _README)
    return True
