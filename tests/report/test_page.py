"""The page: its numbers, its figures, and what it says of missing data."""

import base64
import dataclasses
import hashlib
import json
import re
from html import unescape

import numpy as np
import pytest

from jroute.report import (
    difficulty,
    figures,
    gate_histograms,
    header,
    page,
    problem_table,
    result_rows,
    svg,
    training_figures,
)
from jroute.report.report_data import SplitReport
from tests.report import reports


def text_of(html: str) -> str:
    """What a reader sees, without the table's data and the page's own script."""
    html = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def rendered(data) -> str:
    return page.render(data, figures.figures(data))


@pytest.fixture(scope="module")
def whole() -> str:
    return rendered(reports.report_data(probe=reports.probe()))


def test_the_verdict_stands_first_and_the_numbers_follow(whole) -> None:
    seen = text_of(whole)
    order = ["RL beats three of four declared"]
    order += ["RL accuracy", "75.0", "Arms", "Contrasts declared beforehand", "Headroom"]
    order += ["Training", "Which gate for which problem", "Streams", "Problems", "Settings"]
    places = [seen.index(words) for words in order]
    assert places[0] < places[1] and seen.index("run") < places[0] < 200
    heads = re.findall(r"<h2>(.*?)</h2>", whole)
    assert heads == order[3:]


@pytest.mark.parametrize(
    ("stored", "headline", "sentence"),
    [
        ({"name": "gain", "sentence": "So it is."}, "Gain", "So it is."),
        ("underpowered", "Underpowered", ""),
    ],
    ids=["mapping", "text"],
)
def test_a_stored_verdict_is_quoted(stored, headline, sentence) -> None:
    assert header.verdict({**reports.results(), "verdict": stored}) == (headline, sentence)


@pytest.mark.parametrize(
    ("changes", "headline"),
    [
        ({}, "RL beats three of four declared arms"),  # Holm's p of the fourth is 0.08
        ({"p_holm": 0.01}, "RL beats all four declared arms"),
        ({"p_holm": 0.2}, "RL is not shown to beat any of four declared arms"),
        ({"p_holm": 0.01, "difference": -0.1}, "RL is worse than four of four declared arms"),
    ],
    ids=["three", "all", "none", "worse"],
)
def test_without_a_verdict_only_the_contrasts_speak(changes, headline) -> None:
    results = reports.results()
    for contrast in results["contrasts"][:4]:
        contrast |= changes
    assert header.verdict(results)[0] == headline


def test_rows_are_in_per_cent_and_points() -> None:
    arms = result_rows.arm_rows(reports.results())
    assert [row.name for row in arms] == [
        *("RL", "supervised", "baseline", "fixed 0.5", "best fixed", "oracle")
    ]
    assert arms[0].value == 75.0 and arms[0].ci95 == pytest.approx((65.0, 85.0))
    contrasts = {row.name: row for row in result_rows.contrast_rows(reports.results())}
    assert contrasts["RL − baseline"].value == 25.0 and contrasts["RL − baseline"].p_holm == 0.002
    assert contrasts["RL − oracle"].p_holm is None and not contrasts["RL − oracle"].bold
    room = {row.name: row.value for row in result_rows.headroom_rows(reports.results())}
    assert room == pytest.approx({"RL": 25.0, "hindsight": 40.0})
    stored = {"learnable": {"value": 0.3, "ci95": [0.2, 0.4]}, "noise_floor": {"value": 0.01}}
    room = {r.name: r for r in result_rows.headroom_rows({**reports.results(), "headroom": stored})}
    assert list(room) == ["RL", "learnable", "hindsight", "noise floor"]
    unknown = {**reports.results(), "arms": {"rl": {"accuracy": 0.5, "ci95": [None, None]}}}
    assert result_rows.arm_rows(unknown)[0].ci95 is None
    assert (
        room["learnable"].value == 30.0
        and room["learnable"].ci95 == (20.0, 40.0)
        and room["noise floor"].ci95 is None
    )


def test_every_row_of_a_table_is_drawn_where_its_number_is(whole) -> None:
    arms = whole[whole.index('id="arms"') : whole.index('id="contrasts"')]
    values = [float(v) for v in re.findall(r'class="n v">([\d.]+)<', arms)]
    dots = [float(v) for v in re.findall(r'<circle cx="([\d.]+)%"', arms)]
    ticks = [float(v) for v in re.findall(r'<text x="[\d.]+%" y="13">(\d+)<', arms)]
    places = [float(v) for v in re.findall(r'<text x="([\d.]+)%" y="13">\d+<', arms)]
    assert len(values) == 6 and len(ticks) >= 3
    expected = np.interp(values, ticks, places)
    np.testing.assert_allclose(dots, expected, atol=0.02)


def test_groups_are_neighbours_of_about_equal_size() -> None:
    placed, labels = difficulty.groups(np.array([3.0, 1.0, 1.0, 7.0]))
    assert placed.tolist() == [1, 0, 0, 2] and labels == ["1", "3", "7"]
    values = np.random.default_rng(0).permutation(600).astype(float)
    placed, labels = difficulty.groups(values)
    assert len(labels) == difficulty.BINS and np.ptp(np.bincount(placed)) <= 2
    for group in range(5):
        assert values[placed == group].max() < values[placed == group + 1].min()
    assert labels[0].startswith("0–") and labels[-1].endswith("–599")
    placed, labels = difficulty.groups(np.array([0.0] * 90 + list(range(1, 11))))
    assert labels == ["0", "1–10"] and np.bincount(placed).tolist() == [90, 10]


def test_shares_are_of_all_seeds() -> None:
    split = reports.report_data(30).splits[0]
    steps = next(m for m in difficulty.measures(split) if m.name == "steps")
    shares = difficulty.by_difficulty(split, steps)
    assert shares is not None and shares.labels == ["0", "1", "2", "3", "4"]
    np.testing.assert_allclose(shares.share.sum(axis=0), 1)
    # Of problems with no steps the best gate is 0: seed 1 of 3 chooses it in 2 of 3, seed 2 always.
    chosen = {gate: shares.share[i, 0] for i, gate in enumerate(shares.gates)}
    assert chosen == pytest.approx({0.0: 5 / 9, 0.25: 1 / 9, 0.5: 0, 0.75: 0, 1.0: 3 / 9})
    assert shares.mean[0] == pytest.approx((1 / 9) * 0.25 + 3 / 9)
    split = dataclasses.replace(split, gates=np.zeros((0, 30, 1)))
    assert difficulty.by_difficulty(split, steps) is None


def test_gates_of_several_parts_get_a_heatmap() -> None:
    whole = reports.report_data(30)
    split = whole.splits[0]
    parts = np.stack([split.gates[..., 0], 1 - split.gates[..., 0]], axis=-1)
    split = dataclasses.replace(split, gates=parts)
    assert not split.solved.any()  # no cell of such a gate is known
    drawn = figures.figures(dataclasses.replace(whole, splits=(split,)))
    names = [figure.name for figure in drawn]
    assert {"parts-steps", "parts-answer-length", "parts-prompt-length"} <= set(names)
    steps = next(m for m in difficulty.measures(split) if m.name == "steps")
    means = difficulty.by_difficulty(split, steps).mean_by_dim
    np.testing.assert_allclose(means[0] + means[1], 1)
    element = svg.inline(drawn[names.index("parts-steps")], 5)
    depths = [float(d) for d in re.findall(r"fill: var\(--gate4\); opacity: ([\d.]+)", element)]
    np.testing.assert_allclose(depths, means.ravel(), atol=1e-5)  # the grid is 0 to 1


def test_a_seed_is_right_where_its_gate_solves_the_problem() -> None:
    right = reports.report_data(30).splits[0].solved
    assert right.shape == (3, 30)
    np.testing.assert_array_equal(right[0], [bool(i % 3) for i in range(30)])
    np.testing.assert_array_equal(right[1], [i % 5 == 0 for i in range(30)])


def test_figures_in_the_page_take_its_colours_and_names(whole) -> None:
    whole = re.sub(r"<script.*?</script>", "", whole, flags=re.DOTALL)
    assert "#fe0" not in whole and "NaN" not in whole
    identities = re.findall(r'\bid="([^"]+)"', whole)
    assert len(identities) == len(set(identities))
    for reference in re.findall(r'(?:url\(|href=")#([^)"]+)', whole):
        assert reference in identities, reference
    for name in ("return", "gates-training", "consumed", "gate-steps", "dominance", "diversity"):
        assert f'id="{name}-' in whole, name
    assert "bands hold 90 %" in whole
    used = set(re.findall(r"var\(--(gate\d+|ink|muted|faint|accent|paper)\)", whole))
    defined = set(re.findall(r"--([a-z0-9]+):#", whole))
    assert used <= defined


def test_ramps_run_from_grey_away_from_the_ground() -> None:
    for mode in ("light", "dark"):
        ramp = svg.gate_ramp(5, mode)
        luminance = [
            np.dot([int(c[i : i + 2], 16) for i in (1, 3, 5)], [0.21, 0.72, 0.07]) for c in ramp
        ]
        assert len(set(ramp)) == 5
        rising = np.diff(luminance[1:])
        assert (rising < -12).all() if mode == "light" else (rising > 12).all()
    assert [len(svg.gate_ramp(n, "light")) for n in (1, 2, 9)] == [1, 2, 9]


def test_the_same_figures_are_files(tmp_path) -> None:
    files = page.write(reports.report_data(12, curves={}), tmp_path)
    assert files[0] == tmp_path / "report.html"
    names = {path.name for path in files[1:]}
    assert {"arms-test.png", "arms-test.svg", "contrasts-test.png", "gate-steps.svg"} <= names
    for path in files[1:]:
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml"), path
        assert not (path.suffix == ".svg" and b"#fe0" in path.read_bytes())


ABSENT = {
    "curves": ({"curves": {}}, "No training curves are in the run's tensorboard folder"),
    "seeds": ({"curves_by_seed": False}, "did not store its seeds one by one"),
    "probe": ({}, "The streams of this run were not measured"),
    "noise floor": ({}, "No noise floor was measured"),
    "learnable": ({}, "Learnable headroom is not stored"),
    "problems": (
        {
            "splits": (
                SplitReport("test", reports.results(), missing="The problems cannot be shown: x."),
            )
        },
        "The problems cannot be shown: x.",
    ),
    "contrasts": (
        {"splits": (SplitReport("test", {**reports.results(), "contrasts": []}, missing="a"),)},
        "This run stores no contrasts.",
    ),
    "arms": (
        {"splits": (SplitReport("test", {**reports.results(), "arms": {}}, missing="a"),)},
        "This run stores no arms.",
    ),
    "oracle": (
        {"splits": (SplitReport("test", {**reports.results(), "arms": {}}, missing="a"),)},
        "stores neither a best fixed gate nor the oracle",
    ),
}


def test_what_is_absent_is_said() -> None:
    for name, (changes, sentence) in ABSENT.items():
        kept = {} if {"curves", "splits", "curves_by_seed"} & changes.keys() else {"curves": {}}
        data = reports.report_data(6, **{**kept, **changes})
        drawn = [f for f in figures.figures(data) if f.name == "return"]
        seen = text_of(page.render(data, drawn))
        assert sentence in seen, name
        assert all(head in seen for head in ("Headroom", "Training", "Streams", "Problems"))


def test_nothing_in_the_data_can_end_the_script() -> None:
    content = {"text": reports.SCRIPT + reports.BREAKOUT + "\ud800 &amp; ü"}
    packed = problem_table.script_json(content)
    assert not set("<>&\u2028\u2029") & set(packed)
    assert json.loads(packed) == content
    packed.encode()
    with pytest.raises(ValueError, match="JSON"):
        problem_table.script_json({"x": float("nan")})


def test_a_hostile_run_leaves_the_page_as_it_is(whole) -> None:
    page_ = page.render(reports.report_data(hostile=True), [])
    assert page_.count("<script") == 2 and page_.count("</script") == 2 and "<img" not in page_
    assert "&lt;script&gt;window.planted=1&lt;/script&gt;" in page_  # the run's name
    script = re.search(r"<script>(.*?)</script>", page_, flags=re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in unescape(page_)
    assert "innerHTML" not in script[1] and "http" not in script[1]
    outside = re.findall(r"https?://[^\s\"'<]+", re.sub(r"<script.*?</script>", "", whole))
    assert set(outside) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_all_that_judging_stores_is_said() -> None:
    """Every further part of ``results.json``, where it is there."""
    stored = {
        "verdict": {
            "name": "gain",
            "sentence": "It is.",
            "beside": ["A rival <b>does</b> as well."],
        },
        "gate_sensitive": {"share": 0.312, "ci95": [0.284, 0.342], "n": 40},
        "gaps": [
            {"b": "baseline", "just_significant": 0.2, "power_80": 0.3},
            {"b": "best_fixed", "just_significant": 0.014, "power_80": 0.0182},
        ],
        "resolvable_gap": 0.014,
        "mcnemar": [{"a": "rl_selected", "b": "best_fixed", "only_a": 31, "only_b": 4, "p": 1e-6}],
        "shares": {
            "rl": {"share": 0.97, "ci95": [0.9, 1.0], "n": 40},
            "supervised": {"share": 0.0, "ci95": [None, None], "n": 40},
        },
        "not_available": {"oracle": "the best gate of every problem"},
    }
    floor = {"share": 0.031, "ci95": [0.02, 0.05], "n": 512}
    split_results = {**reports.results(), **stored}
    whole = {**split_results, "noise_floor": {"text": floor, "correct": {**floor, "share": 0.004}}}
    html = rendered(
        reports.report_data(
            6, results=whole, curves={}, splits=(SplitReport("test", split_results, missing="a"),)
        )
    )
    seen = text_of(html)
    for sentence in (
        "Gain It is. A rival <b>does</b> as well.",
        "Gates decide 31.2 % (28.4 to 34.2) of these problems",
        "resolve is 1.4 points; one of 1.8 points is found four times out of five",
        "best fixed 31 4 <0.001",
        "Of the exact-gradient policy's gain: RL 97.0 % (90.0 to 100.0).",
        "512 cells were made twice, in another order and width: 3.1 % (2.0 to 5.0) changed their "
        "text, 0.4 %",
        "which these arms need: oracle (the best gate of every problem)",
    ):
        assert sentence in seen, sentence
    assert "<b>does" not in html


def test_every_arm_and_every_seed_has_its_bar_of_gates() -> None:
    results = {
        "gates": [1.0, 0.0],
        "gates_chosen": {
            "baseline": [[0, 10]],
            "rl": [[10, 0], [4, 6], [0, 10]],
            "supervised": [[2, 8]],
        },
    }
    figure = gate_histograms.arm_histogram(results)
    assert figure.description == "RL: 0 53%, 1 47%; supervised: 0 80%, 1 20%"
    drawn = svg.inline(figure, 2)
    widths = {}
    for path, colour in re.findall(r'<path d="([^"]+)"[^>]*style="fill: var\(--(gate\d)\)', drawn):
        x = [float(v) for v in re.findall(r"[ML] ([\d.]+) ", path)]
        widths.setdefault(colour, []).append(max(x) - min(x))
    full = max(widths["gate0"])
    # Gate 0 is the second column; seeds stand in the order of their mean gates.
    np.testing.assert_allclose(
        np.array(widths["gate0"]) / full, [16 / 30, 0.8, 1, 0.6, 0], atol=1e-3
    )


def test_labels_stand_apart_in_the_order_of_their_values() -> None:
    heights = np.array(training_figures.spread([0.5, 0.9, 0.51, 0.1], 0.1))
    assert heights[[3, 1]].tolist() == [0.1, 0.9]  # with room enough a label is where its value is
    assert heights[2] - heights[0] == pytest.approx(0.1)
    assert heights[[0, 2]].mean() == pytest.approx(0.505)
    assert training_figures.spread([], 0.1) == []


def test_texts_of_the_table_stand_once() -> None:
    data = reports.report_data(10)
    packed = problem_table.pack(data.splits, data.grid)
    assert len(packed["texts"]) == len(set(packed["texts"]))
    row, made = packed["splits"][0]["rows"][7], data.splits[0].rows[7]
    assert [packed["texts"][cell[3]] for cell in row["cells"]] == [c.completion for c in made.cells]
    assert row["cells"][0][3] == row["cells"][1][3] != row["cells"][2][3]
    assert packed["splits"][0]["arms"] == ["baseline", "RL, one seed"]
    assert [cell[1:3] for cell in row["cells"]] == [
        [[0], [0]],
        [[1], []],
        [[2], [1]],
        [[3], []],
        [[4], []],
    ]
    assert [cell[0] for cell in row["cells"]] == ["0", "0.25", "0.5", "0.75", "1"]
    assert (row["base"], row["rl"], row["steps"], row["seeds"]) == (
        0,
        2,
        2,
        pytest.approx(1 / 3, abs=1e-3),
    )
