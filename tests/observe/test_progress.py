"""What the bar of generation says."""

import re

import pytest

from jroute.generate.requests import Progress
from jroute.generate.shapes import Program
from jroute.observe import progress as module
from jroute.observe.progress import GenerationBar

PROGRAMS = (Program("unstack_blocks", ""), Program("decode", "4 x 256, up to 16 steps"))


def test_counts_speed_and_occupancy_of_several_runs(monkeypatch, capsys) -> None:
    now = [100.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    with GenerationBar(12, "outcomes test", "cell") as bar:
        for _ in range(2):  # two runs of six completions
            bar(Progress(0, 6, 0, 0, 0, 4, PROGRAMS))
            now[0] += 2.0
            bar(Progress(2, 6, 3000, 10, 30, 4, PROGRAMS))
            bar(Progress(2, 6, 3000, 10, 30, 4, PROGRAMS))
            now[0] += 2.0
            bar(Progress(6, 6, 5000, 20, 70, 4, PROGRAMS))
        assert bar._bar.n == 12
        assert bar._bar.postfix == "1,250 tokens/s, slots 88% busy"
    err = capsys.readouterr().err
    (line,) = re.findall(r".*programs to compile.*", err)
    assert line.endswith(
        "outcomes test: at most 2 programs to compile: "
        "unstack_blocks, decode 4 x 256, up to 16 steps"
    )


@pytest.mark.parametrize("total", [0, 3])
def test_quiet_prints_nothing(total: int, capsys) -> None:
    with GenerationBar(total, "x", quiet=True) as bar:
        bar(Progress(0, total, 0, 0, 0, 4, PROGRAMS))
        bar(Progress(total, total, 5, 1, 4, 4, PROGRAMS))
    assert capsys.readouterr() == ("", "")


def test_occupancy_before_the_first_step_is_zero() -> None:
    assert Progress(0, 1, 0, 0, 0, 4, ()).occupancy == 0.0
