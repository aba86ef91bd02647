"""The results of a run as text."""

from jroute.arms.columns import arm_values
from jroute.report.text import results_text
from tests.arms.outcomes import CORRECT, small_columns
from tests.statistics.test_results import small_results


def test_the_table_shows_every_arm_and_contrast() -> None:
    results = small_results(arm_values(CORRECT, small_columns()))
    text = results_text(results, "test")
    lines = text.splitlines()
    assert lines[0] == "test: n = 8 problems"
    against = [c["b"] for c in results["contrasts"] if c["a"] == "rl"]
    head = 1 + 1 + len(results["arms"]) + 1
    assert [line.split()[0] for line in lines[head : head + len(against)]] == against
    baseline = next(line for line in lines if line.startswith("baseline"))
    assert baseline.split() == ["baseline", "50.0%", "[21.5,", "78.5]"]
    rl = next(line for line in lines if line.startswith("rl "))
    assert "81.2%" in rl
    assert lines[head].startswith("fixed:0.5") and "+31.2" in lines[head]
    assert lines[head].endswith(")")
    oracle = lines[head + len(against) - 1]
    assert oracle.startswith("oracle") and "-6.2" in oracle and not oracle.endswith(")")
    below = "\n".join(lines[head + len(against) :])
    assert "hindsight +37.5 points" in below and "(n = 8)" in below and "2 folds" in below
    assert "smallest gap at 50.0 % discordance, n = 8: none just significant" in below
    assert "gates decide 75.0% [40.9, 92.9] of the problems (n = 8)" in below
    assert "flips alone would show 1.50 points" in below and "(200 cells made twice)" in below
    assert "verdict: underpowered: these items cannot tell a gain of δ from none (δ = 1" in below
