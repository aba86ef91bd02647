"""Docstrings mark code with double backticks only; no linter checks that in Python files."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
SINGLE = re.compile(r"(?<!`)`(?!`)")


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of docstrings, those of attributes included."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(ast.Constant(str() as text)):
                yield node.lineno, text


def test_a_single_backtick_is_noticed() -> None:
    source = 'def f():\n    """Return `x`, not ``y``."""\n\nX = 1\n"""A :func:`role`."""\n'
    assert [(line, len(SINGLE.findall(text))) for line, text in docstrings(source)] == [
        (5, 2),
        (2, 2),
    ]
    assert not SINGLE.search("Only ``x`` and ``y``.")


@pytest.mark.parametrize("folder", ["jroute", "converters", "scripts"])
def test_code_stands_in_double_backticks(folder: str) -> None:
    wrong = [
        f"{file.relative_to(ROOT)}:{line}"
        for file in sorted((ROOT / folder).rglob("*.py"))
        for line, text in docstrings(file.read_text(encoding="utf-8"))
        if SINGLE.search(text)
    ]
    assert not wrong
