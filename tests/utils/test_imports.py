"""Imports stand in import statements, where linters, type checkers and import-linter see them."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
HIDDEN = {"__import__", "import_module"}


def hidden_imports(source: str) -> Iterator[int]:
    """Yield the lines that name ``__import__`` or ``importlib.import_module``."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(name) | ast.Attribute(attr=name) if name in HIDDEN:
                yield node.lineno
            case ast.ImportFrom(names=names) if HIDDEN & {alias.name for alias in names}:
                yield node.lineno


def test_a_hidden_import_is_noticed() -> None:
    source = (
        "import importlib\n"
        "import builtins as b\n"
        "__import__('os')\n"
        "b.__import__('os')\n"
        "importlib.import_module('os')\n"
        "from importlib import import_module as load\n"
        "load('os')\n"
    )
    assert sorted(hidden_imports(source)) == [3, 4, 5, 6]


@pytest.mark.parametrize("folder", ["jroute", "converters"])
def test_no_module_hides_an_import(folder: str) -> None:
    hidden = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line in hidden_imports(file.read_text(encoding="utf-8"))
    ]
    assert not hidden
