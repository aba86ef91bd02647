"""The report: its numbers, its figures, what it says of what is absent."""

import base64
import dataclasses
import hashlib
import json
import re
from html import unescape

import numpy as np
import pytest

from jroute.evaluation.html import figures, page, problems, shares
from jroute.evaluation.html import rows as numbers
from jroute.evaluation.html.material import Judged
from tests.evaluation import reports


def text_of(html: str) -> str:
    """What a reader sees, without the table's data and the page's own script."""
    html = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def rendered(material) -> str:
    return page.render(material, figures.figures(material))


@pytest.fixture(scope="module")
def whole() -> str:
    return rendered(reports.material(probe=reports.probe()))


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
    assert page.verdict({**reports.results(), "verdict": stored}) == (headline, sentence)


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
    assert page.verdict(results)[0] == headline


def test_rows_are_in_per_cent_and_points() -> None:
    arms = numbers.arms(reports.results())
    assert [row.name for row in arms] == [
        *("RL", "supervised", "baseline", "fixed 0.5", "best fixed", "oracle")
    ]
    assert arms[0].value == 75.0 and arms[0].ci95 == pytest.approx((65.0, 85.0))
    found = {row.name: row for row in numbers.contrasts(reports.results())}
    assert found["RL − baseline"].value == 25.0 and found["RL − baseline"].p_holm == 0.002
    assert found["RL − oracle"].p_holm is None and not found["RL − oracle"].bold
    room = {row.name: row.value for row in numbers.headroom(reports.results())}
    assert room == pytest.approx({"RL": 25.0, "hindsight": 40.0})
    stored = {"learnable": {"value": 0.3, "ci95": [0.2, 0.4]}, "noise_floor": {"value": 0.01}}
    room = {r.name: r for r in numbers.headroom({**reports.results(), "headroom": stored})}
    assert list(room) == ["RL", "learnable", "hindsight", "noise floor"]
    assert room["learnable"].ci95 == (20.0, 40.0) and room["noise floor"].ci95 is None


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
    placed, labels = shares.groups(np.array([3.0, 1.0, 1.0, 7.0]))
    assert placed.tolist() == [1, 0, 0, 2] and labels == ["1", "3", "7"]
    values = np.random.default_rng(0).permutation(600).astype(float)
    placed, labels = shares.groups(values)
    assert len(labels) == shares.BINS and np.ptp(np.bincount(placed)) <= 2
    for group in range(5):
        assert values[placed == group].max() < values[placed == group + 1].min()
    assert labels[0].startswith("0–") and labels[-1].endswith("–599")
    placed, labels = shares.groups(np.array([0.0] * 90 + list(range(1, 11))))
    assert labels == ["0", "1–10"] and np.bincount(placed).tolist() == [90, 10]


def test_shares_are_of_all_seeds() -> None:
    judged = reports.material(30).splits[0]
    steps = next(m for m in shares.measures(judged) if m.short == "steps")
    found = shares.by_difficulty(judged, steps)
    assert found is not None and found.labels == ["0", "1", "2", "3", "4"]
    np.testing.assert_allclose(found.share.sum(axis=0), 1)
    # Of problems with no steps the best gate is 0: seed 1 of 3 chooses it in 2 of 3, seed 2 always.
    chosen = {gate: found.share[i, 0] for i, gate in enumerate(found.gates)}
    assert chosen == pytest.approx({0.0: 5 / 9, 0.25: 1 / 9, 0.5: 0, 0.75: 0, 1.0: 3 / 9})
    assert found.mean[0] == pytest.approx((1 / 9) * 0.25 + 3 / 9)
    judged = dataclasses.replace(judged, gates=np.zeros((0, 30, 1)))
    assert shares.by_difficulty(judged, steps) is None


def test_gates_of_several_parts_get_a_heatmap() -> None:
    whole = reports.material(30)
    judged = whole.splits[0]
    parts = np.stack([judged.gates[..., 0], 1 - judged.gates[..., 0]], axis=-1)
    judged = dataclasses.replace(judged, gates=parts)
    assert not judged.right.any()  # no cell of such a gate is known
    found = figures.figures(dataclasses.replace(whole, splits=(judged,)))
    names = [figure.name for figure in found]
    assert {"parts-steps", "parts-answer-length", "parts-prompt-length"} <= set(names)
    steps = next(m for m in shares.measures(judged) if m.short == "steps")
    means = shares.by_difficulty(judged, steps).parts
    np.testing.assert_allclose(means[0] + means[1], 1)
    drawn = figures.inline(found[names.index("parts-steps")], 5)
    depths = [float(d) for d in re.findall(r"fill: var\(--gate4\); opacity: ([\d.]+)", drawn)]
    np.testing.assert_allclose(depths, means.ravel(), atol=1e-5)  # the grid is 0 to 1


def test_a_seed_is_right_where_its_gate_solves_the_problem() -> None:
    right = reports.material(30).splits[0].right
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
        ramp = figures.gate_ramp(5, mode)
        luminance = [
            np.dot([int(c[i : i + 2], 16) for i in (1, 3, 5)], [0.21, 0.72, 0.07]) for c in ramp
        ]
        assert len(set(ramp)) == 5
        rising = np.diff(luminance[1:])
        assert (rising < -12).all() if mode == "light" else (rising > 12).all()
    assert [len(figures.gate_ramp(n, "light")) for n in (1, 2, 9)] == [1, 2, 9]


def test_the_same_figures_are_files(tmp_path) -> None:
    files = page.write(reports.material(12, curves={}), tmp_path)
    assert files[0] == tmp_path / "report.html"
    names = {path.name for path in files[1:]}
    assert {"arms-test.png", "arms-test.svg", "contrasts-test.png", "gate-steps.svg"} <= names
    for path in files[1:]:
        start = path.read_bytes()[:200]
        assert start.startswith(b"\x89PNG" if path.suffix == ".png" else b"<?xml"), path
        assert not (path.suffix == ".svg" and b"#fe0" in path.read_bytes())


ABSENT = {
    "curves": ({"curves": {}}, "No training curves are in the run's tensorboard folder"),
    "seeds": ({"banded": False}, "did not store its seeds one by one"),
    "probe": ({}, "The streams of this run were not measured"),
    "noise floor": ({}, "No noise floor was measured"),
    "learnable": ({}, "Learnable headroom is not stored"),
    "problems": (
        {"splits": (Judged("test", reports.results(), absent="The problems cannot be shown: x."),)},
        "The problems cannot be shown: x.",
    ),
    "contrasts": (
        {"splits": (Judged("test", {**reports.results(), "contrasts": []}, absent="a"),)},
        "This run stores no contrasts.",
    ),
    "arms": (
        {"splits": (Judged("test", {**reports.results(), "arms": {}}, absent="a"),)},
        "This run stores no arms.",
    ),
    "oracle": (
        {"splits": (Judged("test", {**reports.results(), "arms": {}}, absent="a"),)},
        "stores neither a best fixed gate nor the oracle",
    ),
}


def test_what_is_absent_is_said() -> None:
    for name, (changes, sentence) in ABSENT.items():
        kept = {} if {"curves", "splits", "banded"} & changes.keys() else {"curves": {}}
        material = reports.material(6, **{**kept, **changes})
        drawn = [f for f in figures.figures(material) if f.name == "return"]
        seen = text_of(page.render(material, drawn))
        assert sentence in seen, name
        assert all(head in seen for head in ("Headroom", "Training", "Streams", "Problems"))


def test_nothing_in_the_data_can_end_the_script() -> None:
    content = {"text": reports.SCRIPT + reports.BREAKOUT + "\ud800 &amp; ü"}
    packed = problems.for_script(content)
    assert not set("<>&\u2028\u2029") & set(packed)
    assert json.loads(packed) == content
    packed.encode()
    with pytest.raises(ValueError, match="JSON"):
        problems.for_script({"x": float("nan")})


def test_a_hostile_run_leaves_the_page_as_it_is(whole) -> None:
    page_ = rendered(reports.material(hostile=True))
    assert page_.count("<script") == 2 and page_.count("</script") == 2 and "<img" not in page_
    assert "&lt;script&gt;window.planted=1&lt;/script&gt;" in page_  # the run's name
    script = re.search(r"<script>(.*?)</script>", page_, flags=re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src &#x27;sha256-{digest}&#x27;" in page_
    assert "innerHTML" not in script[1] and "http" not in script[1]
    outside = re.findall(r"https?://[^\s\"'<]+", re.sub(r"<script.*?</script>", "", page_))
    assert set(outside) <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_texts_of_the_table_stand_once() -> None:
    material = reports.material(10)
    packed = problems.pack(material.splits, figures.grid(material))
    assert len(packed["texts"]) == len(set(packed["texts"]))
    row, made = packed["splits"][0]["rows"][7], material.splits[0].rows[7]
    assert [packed["texts"][cell[2]] for cell in row["cells"]] == [c.completion for c in made.cells]
    assert row["cells"][0][2] == row["cells"][1][2] != row["cells"][2][2]
    assert [cell[0] for cell in row["cells"]] == ["0", "0.25", "0.5", "0.75", "1"]
    assert (row["base"], row["rl"], row["steps"], row["seeds"]) == (
        0,
        2,
        2,
        pytest.approx(1 / 3, abs=1e-3),
    )
