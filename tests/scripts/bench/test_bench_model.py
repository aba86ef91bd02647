"""The decoder's benchmark: what it counts, and that it runs on a mesh."""

import dataclasses
import json
from pathlib import Path

import pytest

from jroute.model.config import DecoderConfig
from scripts.bench import bench_model

TINY = dataclasses.replace(
    bench_model.SMALL,
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
)
# A block: norms of 2 x 32 and 2 x 16, projections of 32 x 16 x (4 + 2 + 2 + 4), MLP of 3 x 32 x 48.
BLOCKS = 3 * (2 * 32 + 2 * 16 + 32 * 16 * 12 + 3 * 32 * 48)


@pytest.mark.parametrize(("tied", "mesh"), [(False, "1,1,1"), (True, "2,1,2")])
def test_it_measures_and_counts(
    tied: bool, mesh: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config: DecoderConfig = dataclasses.replace(TINY, tie_word_embeddings=tied)
    monkeypatch.setattr(bench_model, "SMALL", config)
    monkeypatch.setattr(bench_model, "measure_bandwidth", lambda *_: {"median": 1e9})
    monkeypatch.setattr(bench_model, "measure_rate", lambda *_: {"median": 1e9})
    out = tmp_path / "bench.json"
    sizes = ["--batches", "4", "--prompt", "8", "--steps", "2", "--repeats", "1"]
    argv = [*sizes, "--keys", "70", "--mesh", mesh, "--scoring", "4x16", "--out", str(out)]
    assert bench_model.main(argv) == 0
    result = json.loads(out.read_text())
    assert result["mesh"] == dict(
        zip(("data", "fsdp", "tensor"), map(int, mesh.split(",")), strict=True)
    )
    tables = 64 * 32 * (1 if tied else 2)
    assert result["parameter_bytes"] == 4 * (BLOCKS + 32 + tables)
    (figures,) = result["batches"]
    counted = figures["bytes_per_step"]
    cut = mesh != "1,1,1"  # rows over two devices, heads over two
    # keys and values, 3 layers, 2 heads of 16; 8 + 2 x 2 tokens on average
    per_token = 2 * 3 * 2 * 16 * 4
    assert counted["live_cache"] == 4 * 12 * per_token // (4 if cut else 1)
    assert counted["padded_cache"] == 4 * 128 * per_token // (4 if cut else 1)
    assert figures["keys"] == {"live": 12, "capacity": 128}
    # twice the projections, the MLP and the head; scores and sums of 4 heads over 12 keys
    flops = 2 * 4 * (BLOCKS - 3 * (2 * 32 + 2 * 16) + 64 * 32 + 3 * 2 * 4 * 16 * 12)
    assert figures["floor_seconds"]["arithmetic"] == pytest.approx(flops / (4 if cut else 1) / 1e9)
    if not cut:
        # the head, not the token table, of which a step reads a row
        assert counted["weights"] == 4 * (BLOCKS + 32 + 64 * 32) < result["parameter_bytes"]
    assert set(figures["programs"]) == set(bench_model.PROGRAMS)
    floor = (counted["weights"] + counted["live_cache"]) / 1e9
    for program in figures["programs"].values():
        step = program["step_seconds"]
        assert 0 < step["min"] <= step["median"] <= step["max"]
        assert program["floor_over_step"]["measured"] == pytest.approx(floor / step["median"])
        assert program["tokens_per_second"] == pytest.approx(4 / step["median"])
        assert bool(program["collectives"]) is cut
        assert program["operations"]["all"] > program["operations"]["fusion"] > 0
    assert result["scoring"]["tokens_per_second"]["median"] > 0
    assert result["machine"]["versions"]["jax"]
    faster = json.loads(out.read_text())
    for program in faster["batches"][0]["programs"].values():
        program["step_seconds"]["median"] /= 4
    assert bench_model.table(faster, result).count("before: 4.00 times") == 4
