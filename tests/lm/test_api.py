"""Every public function refuses wrong arguments by a ``UserError`` with one sentence."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lm import api_cases

ROOT = Path(__file__).parent.parent.parent
KINDS = ("generate", "logits", "loglikelihood", "encode", "routed", "check_slots", "load")
KINDS += ("load_run", "EnvData", "RoutingEnv", "RoutingVectorEnv", "reset", "vector reset")
KINDS += ("mask", "step", "make", "TableEnv", "LiveEnv")


@pytest.fixture(scope="module")
def raised(tiny_directory: Path) -> dict[str, list[str]]:
    """What every case raises, in a process without the tests' type checker."""
    run = subprocess.run(
        [sys.executable, api_cases.__file__, str(tiny_directory)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    return json.loads(run.stdout)


@pytest.mark.parametrize("kind", KINDS)
def test_wrong_arguments_are_user_errors(raised: dict[str, list[str]], kind: str) -> None:
    cases = {name: what for name, what in raised.items() if name.startswith(kind)}
    assert cases
    for name, (error, message) in cases.items():
        assert error == "UserError", f"{name}: {error} {message}"
        assert message and "\n" not in message and len(message) < 600, name


def test_there_are_many_cases(raised: dict[str, list[str]]) -> None:
    assert len(raised) > 220


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("generate: a lone surrogate", "lone surrogate '\\ud800' at character 1"),
        ("generate: a flat list of ids", "prompt 0 is 1; give a list"),
        ("generate: an id that is a float", "prompt 0 holds a float; token ids are whole numbers"),
        ("generate: ids that are Booleans", "prompt 0 holds a bool"),
        ("generate: gate 1e30", "gate holds 1e+30; give gates from -1000 to 1000"),
        ("generate: temperature 1e-300", "decoding.temperature is 1e-300; give 0, or a number"),
        ("generate: max_new_tokens beyond the context", "longer than the model's context"),
        ("generate: seed a float", "seed is 1.5; give a list"),
        ("logits: floats", "row 0 holds a float"),
        ("loglikelihood: one side", "pair 0 has 1 parts"),
        ("load: mesh a text", "mesh is '2,1,1'; give a MeshConfig"),
    ],
)
def test_the_sentence_names_what_is_wrong(raised, name: str, message: str) -> None:
    assert message in raised[name][1]
