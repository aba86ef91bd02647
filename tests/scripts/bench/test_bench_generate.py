"""Generation beside its peers: statistics, workloads, verdicts, and the pipe to a side."""

import argparse
import json
import math
import sys
import textwrap
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from converters.hf_config import config_to_hf
from jroute.checkpoint.manifest import model_fingerprint
from scripts.bench import bench_generate
from scripts.bench.peers import client, compare, model, report, rounds, sides, worker, workload
from scripts.bench.peers.client import SideFailed, Worker
from scripts.bench.peers.shapes import SHAPES
from tests.model.tiny import ASSET

TINY = SHAPES["tiny"]


def test_a_speedup_is_of_pairs_of_rounds() -> None:
    # The machine slows by ten from round to round; the pairs all say two.
    steady = compare.speedup([1.0, 10.0, 100.0], [2.0, 20.0, 200.0])
    assert steady["ratio"] == pytest.approx(2)
    assert steady["interval"] == pytest.approx([2, 2])
    # Two rounds: mean of the logarithms 1, standard error 1, t at 97.5 % with one degree 12.706.
    two = compare.speedup([1.0, 1.0], [1.0, math.e**2])
    assert two["ratio"] == pytest.approx(math.e)
    assert np.log(two["interval"]) == pytest.approx([1 - 12.7062, 1 + 12.7062], abs=1e-3)
    assert compare.speedup([4.0], [2.0])["ratio"] == 0.5
    assert compare.speedup([4.0], [2.0])["interval"] is None


def test_an_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        machine = rng.lognormal(0, 1, 4)  # what slows both sides of a round
        noise = rng.lognormal(0, 0.1, (2, 4))
        figures = compare.speedup((machine * noise[0]).tolist(), (3 * machine * noise[1]).tolist())
        low, high = figures["interval"]
        inside += low <= 3 <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_tokens_are_right_wrong_or_near_ties() -> None:
    none = compare.verdict([[], []], "float32")
    assert none["right"] and none["near_ties"] == none["wrong_tokens"] == 0
    tie = compare.verdict([[(3, 1e-5)], []], "float32")
    assert tie["right"] and tie["near_ties"] == 1 and tie["largest_gap"] == 1e-5
    wrong = compare.verdict([[(3, 1e-5), (4, 2.0)], [], [(0, 0.5), (1, 0.5)]], "float32")
    assert not wrong["right"]
    assert (wrong["near_ties"], wrong["wrong_tokens"], wrong["wrong_rows"]) == (1, 3, 2)
    assert compare.verdict([[(0, 0.05)]], "bfloat16")["right"]


def test_equal_work() -> None:
    work = workload.equal(4, 6, 9, 100)
    assert [len(row) for row in work.prompts] == [6] * 4 and work.new == [9] * 4
    assert work == workload.equal(4, 6, 9, 100)
    assert work.prompts != workload.equal(4, 6, 9, 100, seed=1).prompts
    assert work.describe()["new_tokens"] == 36


def test_ragged_work_is_like_gsm8k() -> None:
    full = workload.ragged(4000, 1, 8192)
    lengths = np.array([len(row) for row in full.prompts])
    assert np.median(lengths) == pytest.approx(57, abs=2)
    # A geometric length of mean 300 cut at 1,024: 300 (1 - (299/300)^1024) on average.
    expected = 300 * (1 - (299 / 300) ** 1024)
    assert np.mean(full.new) == pytest.approx(expected, rel=0.05)
    assert max(full.new) == 1024 and min(full.new) >= 1
    assert np.mean(np.array(full.new) == 1024) == pytest.approx((299 / 300) ** 1023, abs=0.01)
    small = workload.ragged(4000, 16, 8192)
    assert small.new == [math.ceil(n / 16) for n in full.new]
    assert [len(row) for row in small.prompts] == [math.ceil(n / 16) for n in lengths]
    # What every machine must get from this seed.
    few = workload.ragged(5, 1, 8192)
    assert (few.new, [len(row) for row in few.prompts]) == PINNED


PINNED = ([240, 696, 1, 1024, 92], [60, 41, 44, 41, 47])


def test_static_groups_hold_neighbours_in_length() -> None:
    prompts = [[0] * n for n in (3, 9, 1, 7, 5)]
    assert worker.static_groups(prompts, 2) == [[1, 3], [4, 0], [2]]


def test_padding_and_its_mask() -> None:
    assert worker.padded([[5], [6, 7]], left=True) == ([[0, 5], [6, 7]], [[0, 1], [1, 1]])
    assert worker.padded([[5], [6, 7]], left=False) == ([[5, 0], [6, 7]], [[1, 0], [1, 1]])


def test_timed_keeps_order_and_what_was_asked() -> None:
    def longest(prompts: list[list[int]], new: list[int]) -> list[list[int]]:
        return [[row[0]] * max(new) for row in prompts]

    figures = worker.timed(longest, [[1], [2], [3]], [2, 5, 1], [[2, 0], [1]])
    assert figures["tokens"] == [[1, 1], [2, 2, 2, 2, 2], [3]]
    assert figures["row_steps"] == 2 * 2 + 5
    with pytest.raises(RuntimeError, match="row 1 has 2 tokens, but 5"):
        worker.timed(lambda p, n: [[0, 0] for _ in p], [[1], [2]], [2, 5], [[0], [1]])


FAKE = """
    import os, sys, time
    sys.path.insert(0, {peers!r})
    from worker import serve, static_groups, timed

    def load(model, dtype, threads):
        print("a library says hello")
        return {{"model": model, "cores": len(os.sched_getaffinity(0)),
                 "jax": sorted(k for k in os.environ if k.startswith("JAX_"))}}

    def complete(prompts, new):
        return [[(row[0] + i) % 7 for i in range(max(new))] for row in prompts]

    def generate(prompts, new, batch, waves=False):
        if {broken} and batch == 3:
            raise ValueError("batch of three")
        figures = timed(complete, prompts, new, static_groups(prompts, batch))
        return {{**figures, "seconds": {seconds}}}  # as if it had taken so long

    def check(prompts, completions):
        return {{"gaps": [[(i, 3.0) for i, t in enumerate(c) if t != (p[0] + i) % 7]
                          for p, c in zip(prompts, completions)]}}

    def end():
        sys.exit("gone for good")

    def sleep():
        time.sleep(60)

    commands = dict(load=load, generate=generate, check=check, end=end, sleep=sleep)
    serve(commands)
"""


@pytest.fixture
def fake(tmp_path: Path) -> Any:
    """Writes a side that counts upwards, and gives its script."""

    def write(name: str, seconds: float = 1.0, broken: bool = False, wrong: bool = False) -> Path:
        peers = str(Path(worker.__file__).parent)
        text = textwrap.dedent(FAKE).format(peers=peers, seconds=seconds, broken=broken)
        if wrong:
            text = text.replace("(row[0] + i) % 7", "(row[0] + 2 * i) % 7")
        script = tmp_path / f"{name}.py"
        script.write_text(text)
        return script

    return write


def test_a_worker_answers_fails_and_ends(fake: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with Worker("fake", sys.executable, fake("fake"), log, threads=1) as side:
        loaded = side.ask("load", model="m", dtype="float32", threads=1)
        # One core, and no setting of this test run's JAX but ours.
        assert loaded["cores"] == 1
        assert loaded["jax"] == ["JAX_ENABLE_COMPILATION_CACHE", "JAX_PLATFORMS"]
        assert "a library says hello" in side.last_words()
        figures = side.ask("generate", prompts=[[1], [5]], new=[3, 2], batch=2)
        assert figures["tokens"] == [[1, 2, 3], [5, 6]]
        large = [[i % 7] * 500 for i in range(400)]  # more than a pipe holds
        assert len(side.ask("generate", prompts=large, new=[9] * 400, batch=400)["tokens"]) == 400
        before = side.cpu_seconds()
        time.sleep(0.3)
        assert side.cpu_seconds() - before < 0.1  # it does not spin while it waits
        with pytest.raises(SideFailed, match=r"(?s)fake failed at 'nothing'.*KeyError"):
            side.ask("nothing")
        assert side.ask("generate", prompts=[[1]], new=[1], batch=1)["tokens"] == [[1]]
        with pytest.raises(SideFailed, match=r"(?s)fake ended at 'end': .*gone for good"):
            side.ask("end")
    with (
        Worker("slow", sys.executable, fake("slow"), log, threads=1) as side,
        pytest.raises(SideFailed, match=r"slow gave no answer within 0\.2 s"),
    ):
        side.ask("sleep", timeout=0.2)


@pytest.fixture
def bench(fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bench of fakes: ours, the reference, a slow peer, and one with other tokens."""
    scripts = {
        "jroute": fake("jroute", seconds=2.0),
        "transformers": fake("transformers", seconds=10.0),
        "tunix": fake("tunix", wrong=True),
        "skyrl": fake("skyrl", seconds=6.0, broken=True),
    }
    fakes = {n: sides.SIDES[n]._replace(script=str(path)) for n, path in scripts.items()}
    monkeypatch.setattr(rounds, "SIDES", fakes)
    (tmp_path / "logs").mkdir()
    args = argparse.Namespace(work=tmp_path, dtype="float32", threads=1, timeout=300)
    with ExitStack() as stack:
        made = rounds.Bench(args, (tmp_path / "hf", tmp_path / "own"), TINY, stack)
        for name in fakes:
            made.open(name, Path(sys.executable))
        yield made


def test_rounds_alternate_check_and_judge(bench: rounds.Bench, tmp_path: Path) -> None:
    assert [bench.sides[name]["model"] for name in ("jroute", "skyrl")] == [
        str(tmp_path / "own"),
        str(tmp_path / "hf"),
    ]
    calls: list[str] = []
    ask = bench.ask
    bench.ask = lambda side, do, **a: (calls.append(side), ask(side, do, **a))[1]  # type: ignore[method-assign]
    work = workload.equal(4, 3, 5, 100)
    figures = bench.measure(bench.contestants(), work, 4, 3)
    four = ["jroute", "transformers", "tunix", "skyrl"]
    assert calls[:12] == [*four, *four[1:], four[0], *four[2:], *four[:2]]
    assert list(figures["sides"]) == four and not figures["failed"]
    for name, side in figures["sides"].items():
        assert len(side["seconds"]["rounds"]) == 3  # the first of four turns warms up
        assert side["tokens"]["right"] is (name != "tunix")
        assert side["occupancy"] == 1
        assert side["tokens_per_second"]["median"] == 20 / side["seconds"]["median"]
    assert figures["sides"]["tunix"]["rows_different_from_ours"] == 4
    assert figures["sides"]["skyrl"]["rows_different_from_ours"] == 0
    assert figures["ours_is_faster_by"]["skyrl"]["ratio"] == pytest.approx(3)
    assert figures["idle_workers_cpu_seconds"] < 0.5
    # The wrong one is the fastest, and is not taken for the best.
    assert figures["ours_is_faster_by"]["tunix"]["ratio"] == pytest.approx(0.5)
    assert report.best(figures, lambda label: label != "jroute") == "skyrl"


def test_a_side_that_fails_is_told_and_left_out(bench: rounds.Bench) -> None:
    work = workload.equal(3, 3, 5, 100)
    figures = bench.measure(bench.contestants(), work, 3, 1)
    assert list(figures["sides"]) == ["jroute", "transformers", "tunix"]
    assert "batch of three" in figures["failed"]["skyrl"]


def test_first_results_are_those_of_fresh_processes(bench: rounds.Bench) -> None:
    work = workload.equal(2, 3, 5, 100)
    figures = bench.first(work, 2, 1)
    for each in figures["seconds"].values():
        median = {name: spread["median"] for name, spread in each.items()}
        assert median["until_first_result"] == pytest.approx(
            median["loading"] + median["first_call"], abs=1e-6
        )
        assert median["loading"] > 0.01  # the start of an interpreter
    assert figures["ours_is_faster_by"]["transformers"]["interval"] is None


def _figures(rates: dict[str, float], ratios: dict[str, list[float]]) -> dict[str, Any]:
    labels = {
        label: {"tokens_per_second": {"median": rate}, "tokens": {"right": label != "tunix"}}
        for label, rate in rates.items()
    }
    faster = {label: {"ratio": each[0], "interval": each[1:]} for label, each in ratios.items()}
    return {"sides": labels, "ours_is_faster_by": faster}


def test_a_real_model_takes_the_place_of_random_weights(tiny_directory, tmp_path, capsys) -> None:
    from scripts.bench import bench_generate

    out = tmp_path / "figures.json"
    options = ["--hf", str(ASSET), "--model", str(tiny_directory), "--parts", "equal"]
    options += ["--peers", "", "--batches", "2", "--prompt", "4", "--new", "3", "--rounds", "1"]
    options += ["--threads", "1", "--work", str(tmp_path / "work"), "--out", str(out)]
    assert bench_generate.main(options) == 0
    figures = json.loads(out.read_text())
    assert figures["config"]["vocab_size"] == 483 and figures["goals"] == []
    assert figures["settings"]["shape"] == tiny_directory.name
    model = figures["settings"]["model"]
    assert model == {"fingerprint": model_fingerprint(tiny_directory), "gguf_quantisation": None}
    assert "jroute" in figures["parts"]["equal"]["2"]["sides"]
    for wrong in (options[2:], [*options, "--parts", "theta"]):
        assert bench_generate.main(wrong) == 2
    assert "--hf and --model belong together" in capsys.readouterr().err


def test_goals_take_the_right_rival() -> None:
    rates = {"jroute": 90.0, "transformers": 30.0, "tunix": 200.0, "skyrl": 80.0}
    single = {
        "transformers": [3.0, 2.9, 3.1],
        "tunix": [0.4, 0.3, 0.5],
        "skyrl": [0.98, 0.95, 1.01],
    }
    sixteen = {**single, "skyrl": [1.49, 1.4, 1.6]}
    ragged = {**single, "jroute (static)": [2.1, 2.0, 2.2]}
    parts = {
        "equal": {
            "part_seconds": 1.0,
            "1": _figures(rates, single),
            "16": _figures(rates, sixteen),
        },
        "ragged": _figures({**rates, "jroute (static)": 40.0}, ragged),
    }
    figures = {(g["part"], g["goal"]): g for g in report.goals(parts)}
    # Not behind: the interval reaches 1. The wrong tunix is no rival, however fast.
    assert figures["equal 1", 1.0]["met"] and "skyrl" in figures["equal 1", 1.0]["against"]
    assert not figures["equal 16", 1.5]["met"]
    assert figures["equal 16", 2.5]["met"]
    assert figures["ragged", 2.0]["met"] and figures["ragged", 2.0]["ratio"] == 2.1
    assert not figures["ragged", 3.0]["met"] and "skyrl" in figures["ragged", 3.0]["against"]
    assert ("equal 64", 2.0) not in figures


def test_sharpening_touches_the_norms_of_queries_and_keys_only(tmp_path: Path) -> None:
    from converters.safetensors import Checkpoint
    from scripts.random_model import write_random

    like = tmp_path / "like"
    like.mkdir()
    (like / "config.json").write_text(json.dumps(config_to_hf(TINY.config)))
    for name in ("plain", "sharp"):
        write_random(like, tmp_path / name, dtype="float32", tokenizer=model.TOKENIZER)
    model._sharpen(tmp_path / "sharp")
    model._sharpen(tmp_path / "sharp")  # once is enough
    plain, sharp = Checkpoint(tmp_path / "plain"), Checkpoint(tmp_path / "sharp")
    changed = 0
    for name in plain.tensors:
        a, b = (np.asarray(c.read(name)) for c in (plain, sharp))
        factor = 3.0 if "q_norm" in name or "k_norm" in name else 1.0
        changed += factor == 3.0
        np.testing.assert_array_equal(np.float32(factor) * a, b)
    assert changed == 4  # two norms in two layers


def test_an_environment_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "env"
    folder.mkdir()
    (folder / "requirements.json").write_text('["numpy==1"]')
    client.make_environment(folder, ["numpy==1"], ["/nowhere/python"])  # nothing to do
    with pytest.raises(client.UserError, match="none of /nowhere/python runs"):
        client.make_environment(folder, ["numpy==2"], ["/nowhere/python"])


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--parts", "equal,tables"], "names 'tables'; choose from equal"),
        (["--peers", "vllm"], "names 'vllm'"),
        (["--batches", "0"], "must be positive"),
        (["--new", "0"], "--new must be positive"),
        (["--environment", "tunix"], "give PEER=PYTHON"),
    ],
    ids=["part", "peer", "batch", "new", "environment"],
)
def test_it_refuses(argv: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_generate.main(argv) == 2
    assert says in capsys.readouterr().err


def test_our_side_end_to_end(tmp_path: Path) -> None:
    argv = ["--shape", "tiny", "--peers", "", "--work", str(tmp_path), "--requests", "6"]
    out = tmp_path / "out.json"
    argv += ["--batches", "2", "--rounds", "1", "--ragged-rounds", "1", "--slots", "2"]
    argv += ["--parts", "ragged,floor", "--threads", "1", "--out", str(out)]
    assert bench_generate.main(argv) == 0
    result = json.loads(out.read_text())
    parts = result["parts"]
    assert list(parts) == ["ragged", "floor"] and not result["not_measured"]
    ragged = parts["ragged"]["sides"]
    assert set(ragged) == {"jroute", "jroute (static)"}
    # The same tokens, whether slots are refilled or not, and a better use of the slots.
    assert ragged["jroute (static)"]["rows_different_from_ours"] == 0
    assert ragged["jroute (static)"]["occupancy"] < ragged["jroute"]["occupancy"] <= 1
    c = TINY.config
    assert parts["floor"]["cache_bytes_per_token"] == 2 * 2 * 2 * 16 * 4
    block = 64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 96 + 2 * 64 + 2 * 16
    assert parts["floor"]["weight_bytes"] == 4 * (2 * block + 64 + c.vocab_size * 64)
    live = parts["floor"]["batches"]["2"]["live_cache_bytes"]
    assert live == 2 * (8 + (8 + 4) / 2) * parts["floor"]["cache_bytes_per_token"]
    assert result["machine"]["versions"]["jax"] and result["settings"]["threads"] == 1
    # A second run takes what is there.
    before = out.stat().st_mtime_ns
    assert bench_generate.main([*argv, "--resume"]) == 0
    assert json.loads(out.read_text())["parts"] == parts and out.stat().st_mtime_ns == before
