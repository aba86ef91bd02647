"""The page in a browser: nothing that a model wrote runs, and the table filters and sorts."""

import os
import re
import shutil
from pathlib import Path

import pytest

from jroute.report import page
from tests.report import reports
from tests.report.browser import Browser, chromium

COUNT = 1319


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        reason = "chromium and chromedriver are not installed (Debian: chromium chromium-driver)"
        if os.environ.get("JROUTE_REQUIRE_CHROMIUM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with chromium(tmp_path_factory.mktemp("profile")) as tab:
        yield tab


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """As many problems as GSM8K's test has; problem 7's every text is hostile."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "report.html").write_text(page.render(reports.report_data(COUNT, hostile=True), []))
    return folder / "report.html"


@pytest.fixture
def opened(browser, file) -> Browser:
    browser.resize(1280, 900)
    browser.open(file)
    return browser


def lines(tab: Browser) -> list[int]:
    """Numbers of the problems whose rows are in the document, from the top."""
    questions = tab.run(
        "return [...document.querySelectorAll('#rows .line')].map(l => "
        "l.querySelector('.question').textContent)"
    )
    return [int(re.search(r"What is (\d+)", question)[1]) for question in questions]


def choose(tab: Browser, name: str, value: str) -> str:
    """Sets a filter as a user would; returns the line that counts."""
    return tab.run(
        "const field = document.getElementById('filters').elements[arguments[0]];"
        "field.value = arguments[1];"
        "field.dispatchEvent(new Event('input', {bubbles: true}));"
        "return document.getElementById('count').textContent",
        name,
        value,
    )


def sort(tab: Browser, name: str) -> str:
    """Clicks a column's name; returns the order that is announced."""
    return tab.run(
        "const head = [...document.querySelectorAll('#heads > *')]"
        ".find(h => h.textContent === arguments[0]);"
        "head.querySelector('button').click(); return head.getAttribute('aria-sort')",
        name,
    )


@pytest.mark.parametrize("guarded", [True, False], ids=["policy", "escaping alone"])
def test_nothing_that_was_written_runs(browser, file, tmp_path, guarded) -> None:
    content = file.read_text()
    if not guarded:
        content, removed = re.subn(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", content)
        assert removed == 1
    shown = tmp_path / "report.html"
    shown.write_text(content)
    browser.open(shown)
    choose(browser, "text", "window.planted")
    assert lines(browser) == [reports.HOSTILE]
    browser.run("document.querySelector('#rows .line').click()")
    browser.run("document.querySelectorAll('#detail details').forEach(d => { d.open = true; })")
    state = browser.run(
        "return {planted: window.planted ?? null, scripts: document.scripts.length,"
        "images: document.images.length, open: document.getElementById('detail').open,"
        "pres: [...document.querySelectorAll('#detail pre')].map(p => p.textContent),"
        "title: document.title, loaded: performance.getEntriesByType('resource').length}"
    )
    assert state["planted"] is None and state["scripts"] == 2 and state["images"] == 0
    assert state["open"] and state["loaded"] == 0
    bad = reports.SCRIPT + reports.BREAKOUT
    assert state["pres"][0] == f"It is -7.{bad}" and state["pres"][1] == f"It is 8.{bad}"
    assert state["pres"][2] == f"<|user|>7{bad}" and state["title"].startswith(
        f"run{reports.SCRIPT}"
    )
    log = [line for line in browser.log() if "favicon" not in line["message"]]
    assert log == []


def test_the_table_filters(opened) -> None:
    # RL is right if i % 3, the plain model if i % 5 == 0.
    right = [bool(i % 3) for i in range(COUNT)]
    base = [i % 5 == 0 for i in range(COUNT)]
    wins = [i for i in range(COUNT) if right[i] and not base[i]]
    losses = [i for i in range(COUNT) if base[i] and not right[i]]
    counted = opened.run("return document.getElementById('count').textContent")
    assert counted == f"1,319 of 1,319 problems, ▲ {len(wins)} wins, ▼ {len(losses)} losses"
    assert choose(opened, "outcome", "win").startswith(f"{len(wins)} of 1,319")
    assert lines(opened)[:9] == wins[:9]
    assert choose(opened, "outcome", "loss").startswith(f"{len(losses)} of 1,319")
    assert lines(opened)[:9] == losses[:9]
    assert opened.run("return document.querySelector('#rows .mark').textContent") == "▼"
    gate = [i for i in losses if (i % 5 + 1) % 5 == 1]
    assert choose(opened, "gate", "0.25").startswith(f"{len(gate)} of 1,319")
    assert choose(opened, "gate", "1").startswith("0 of 1,319")
    assert "No problem is like that." in opened.run(
        "return document.getElementById('rows').textContent"
    )
    choose(opened, "gate", "")
    choose(opened, "outcome", "")
    assert choose(opened, "text", "IS 1234 plus").startswith("1 of 1,319")
    assert lines(opened) == [1234]


def test_the_table_sorts(opened) -> None:
    assert lines(opened)[:4] == [0, 1, 2, 3]
    assert sort(opened, "Problem") == "descending" and lines(opened)[:2] == [1318, 1317]
    assert sort(opened, "Prompt") == "ascending"
    assert lines(opened)[:3] == [0, 17, 34]  # 10 + i % 17 tokens
    assert sort(opened, "Prompt") == "descending" and lines(opened)[:3] == [16, 33, 50]
    assert sort(opened, "Steps") == "ascending"
    assert lines(opened)[:3] == [1, 6, 11]  # without a solution there is nothing to count: last
    assert sort(opened, "Gate") == "ascending"
    zero = [i for i in range(60) if (i % 5 if i % 3 else (i % 5 + 1) % 5) == 0]
    assert lines(opened)[:5] == zero[:5]


def test_only_rows_in_sight_are_in_the_document(opened) -> None:
    assert 10 < len(lines(opened)) < 40
    height = opened.post(
        "execute/async",
        script="const done = arguments[0], box = document.getElementById('rows');"
        "box.scrollTop = box.scrollHeight;"
        "requestAnimationFrame(() => requestAnimationFrame(() => done(box.scrollHeight)))",
        args=[],
    )
    assert height == COUNT * 44
    assert lines(opened)[-1] == COUNT - 1 and len(lines(opened)) < 40


def test_one_problem_is_shown_side_by_side(opened) -> None:
    choose(opened, "text", "is 4 plus")
    opened.run("document.querySelector('#rows .line').click()")
    sides = "return [...document.querySelectorAll('#detail .sides > div')].map(d => d.innerText)"
    base, rl = opened.run(sides)
    assert "Plain model, gate 0" in base and "It is -4." in base and "-4 ✗" not in rl
    assert "RL, gate 1" in rl and "It is 5." in rl
    opened.run("document.querySelectorAll('#detail .gates button')[2].click()")
    assert "Other gate, gate 0.5" in opened.run(sides)[1]
    opened.run("document.querySelector('#detail .bar button:last-child').click()")
    assert opened.run("return document.getElementById('detail').open") is False


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_phone_shows_it_whole(browser, file, theme) -> None:
    browser.open(file)
    browser.resize(390, 844, phone=True)
    browser.theme(theme)
    width, ground, ink = browser.run(
        "const s = getComputedStyle(document.body);"
        "return [document.documentElement.scrollWidth, s.backgroundColor, s.color]"
    )
    assert width == 390
    light = [sum(map(int, re.findall(r"\d+", colour))) > 380 for colour in (ground, ink)]
    assert light == ([True, False] if theme == "light" else [False, True])
