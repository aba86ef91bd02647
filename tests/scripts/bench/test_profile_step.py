"""The command that says where a decode step's time goes."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scripts.bench import profile_step as profile
from scripts.bench.measurement import random_params
from scripts.bench.peers.shapes import SHAPES

CONFIG = SHAPES["tiny"].config


def test_every_side_runs_and_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "profile.json"
    options = ["--shape", "tiny", "--rows", "3", "--context", "64", "--rounds", "2"]
    assert profile.main([*options, "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert set(figures["rows"]["3"]) == {"step", "products", "attention"}
    for side in figures["rows"]["3"].values():
        assert 0 < side["least"] <= side["milliseconds"] <= side["most"] and side["cores"] > 0
    assert figures["settings"]["dtype"] == "float32"
    assert "3 rows\n  step " in capsys.readouterr().out
    for wrong in (["--rows", "3,x"], ["--rows", "0"], ["--context", "17"]):
        assert profile.main([*options, *wrong]) == 2
        assert "give " in capsys.readouterr().err


def test_the_products_are_those_of_the_model() -> None:
    """As many multiplications as there are weights that a token meets, and nothing left out."""
    params = profile.unstack(random_params(CONFIG, "float32", None))
    x = jax.ShapeDtypeStruct((4, CONFIG.hidden_size), jnp.float32)
    text = profile.products.lower(params, x, config=CONFIG).as_text()
    dots = [line for line in text.splitlines() if "dot_general" in line]
    assert len(dots) == 7 * CONFIG.num_hidden_layers + 1
    used = sum(np.size(leaf) for leaf in jax.tree.leaves(params) if np.ndim(leaf) > 1)
    sizes = [line.rsplit("tensor<", 2)[1].split("xf32")[0] for line in dots]
    assert sum(int(np.prod([int(n) for n in size.split("x")])) for size in sizes) == used
