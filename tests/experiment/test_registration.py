"""The ids are registered by ``import jroute``, without JAX; making an environment imports it."""

import dataclasses
import subprocess
import sys

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec

from jroute.experiment.registration import ROUTING_ID

PROGRAM = """
import sys, gymnasium, {imports}
assert ("jax" in sys.modules) == ("{imports}" == "jroute.envs")  # TableEnv is JAX's
for make in (gymnasium.make, gymnasium.make_vec):
    try:
        make("{name}", run="nowhere")
    except Exception as error:
        assert "nowhere is not a run folder" in str(error), error
    else:
        raise AssertionError("a missing run folder was opened")
"""


@pytest.mark.parametrize(
    ("imports", "name"),
    [("jroute", ROUTING_ID), ("jroute.envs", ROUTING_ID), ("gymnasium", f"jroute:{ROUTING_ID}")],
)
def test_importing_jroute_registers_the_id(imports, name):
    program = PROGRAM.format(imports=imports, name=name)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_spec_passes_through_json():
    spec = dataclasses.replace(gymnasium.spec(ROUTING_ID), kwargs={"run": "runs/demo"})
    assert EnvSpec.from_json(spec.to_json()) == spec
