"""Names of arms stand in the registry alone; other modules take them from there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import jroute
from jroute.arms.registry import ARMS, FIXED

PACKAGE = Path(jroute.__file__).parent

EXCEPTIONS = {
    ("arms/supervised.py", "supervised"): "section of the configuration, in a message",
    ("experiment/config.py", "supervised"): "section of the configuration",
    ("experiment/calibration.py", "supervised"): "section of a calibration's configuration",
    ("experiment/controllers.py", "supervised"): "that section in the fingerprint of a training",
    ("experiment/training.py", "supervised"): "names the random key of its weights",
    ("harness/options.py", "fixed:0.5"): "an example in the help",
    ("report/problem_table.py", "rl"): "key that the page's script reads",
}
"""Names of arms outside the registry, and why each stands there."""


def docstrings(tree: ast.Module) -> set[int]:
    """Return the ids of the strings that only document: statements of their own."""
    return {
        id(statement.value)
        for statement in ast.walk(tree)
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    }


def strings(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the strings of a module and their lines, parts of f-strings included."""
    tree = ast.parse(path.read_text())
    documentation = docstrings(tree)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or id(node) in documentation:
            continue
        if isinstance(node.value, str):
            yield node.value, node.lineno


def spelled_out() -> dict[tuple[str, str], int]:
    """Return the line of every arm that a module but the registry spells out, alone or in a text.

    In a text only names that are no English words count: ``best_fixed``, ``fixed:0.5``.
    """
    words = "|".join(name for name in ARMS if "_" in name)
    in_text = re.compile(rf"\b(?:{words}|{FIXED}[\dG][\d.]*)(?!\w)")
    places = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        if module == "arms/registry.py":
            continue
        for text, line in strings(path):
            names = [text] if text in ARMS else in_text.findall(text)
            places |= {(module, name): line for name in names}
    return places


def test_no_module_but_the_registry_spells_out_an_arm() -> None:
    places = spelled_out()
    unexpected = {place: line for place, line in places.items() if place not in EXCEPTIONS}
    assert not unexpected, "take the name from jroute.arms.registry, or say why not here"
    assert EXCEPTIONS.keys() <= places.keys(), "an exception is no longer needed"
