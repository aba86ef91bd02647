"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Give a temporary name beside ``file`` that takes its place when the block succeeds."""
    partial = file.with_name(f".{file.name}.partial-{os.getpid()}")
    try:
        yield partial
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def write_text(file: Path, text: str) -> None:
    """Write a text whole or not at all."""
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8")
