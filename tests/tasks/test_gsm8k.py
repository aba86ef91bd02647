"""GSM8K: the rules on small files, and the counts of the real data."""

import hashlib
import json
import logging
import re
from typing import Any

import datasets
import pytest

from jroute.tasks import TaskConfig, load_problems
from jroute.tasks.answers import is_correct, parse_answer
from jroute.tasks.sources import held_out
from jroute.utils.errors import UserError
from tests.support import data_dir


@pytest.fixture(autouse=True)
def _no_shared_data(request, monkeypatch):
    if "real_data" not in request.fixturenames:
        monkeypatch.delenv("JROUTE_DATA", raising=False)


@pytest.fixture
def real_data():
    return data_dir()


def row(number, question=None):
    answer = f"It is 2 * {number} = <<2*{number}={2 * number}>>{2 * number}.\n#### {2 * number:,}"
    return {"question": question or f"What is twice {number}?", "answer": answer}


def write(folder, name, rows):
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def load(path, split: Any, **settings):
    return load_problems(TaskConfig(name="gsm8k", path=str(path), **settings), split)


def test_fields(tmp_path):
    write(tmp_path, "test.jsonl", [row(3), row(1000)])
    first, second = load(tmp_path, "test")
    assert (first.id, first.question, first.answer) == ("gsm8k/test/0", "What is twice 3?", "6")
    assert first.solution == "It is 2 * 3 = 6."
    assert (second.id, second.answer) == ("gsm8k/test/1", "2000")


def test_validation_is_held_out_by_the_questions_digest(tmp_path):
    write(tmp_path, "train.jsonl", [row(n) for n in range(20)])
    train, validation = (load(tmp_path, s, validation=5) for s in ("train", "validation"))
    by_digest = sorted(
        range(20), key=lambda n: hashlib.sha256(f"What is twice {n}?".encode()).hexdigest()
    )
    expected = sorted(by_digest[:5])
    assert [p.id for p in validation] == [f"gsm8k/train/{n}" for n in expected]
    remaining = [n for n in range(20) if n not in expected]
    assert [p.id for p in train] == [f"gsm8k/train/{n}" for n in remaining]
    assert load(tmp_path, "validation", validation=5, limit=2) == validation[:2]
    assert load(tmp_path, "validation", validation=0) == []


def test_validation_depends_on_neither_order_nor_white_space(tmp_path):
    rows = [row(n) for n in range(20)]
    write(tmp_path / "a", "train.jsonl", rows)
    spaced = [{**r, "question": r["question"].replace(" ", "\n ") + " "} for r in rows]
    write(tmp_path / "b", "train.jsonl", spaced[::-1])

    def questions(folder):
        problems = load(tmp_path / folder, "validation", validation=6)
        return sorted(" ".join(p.question.split()) for p in problems)

    assert questions("a") == questions("b")
    assert len(questions("a")) == 6


def test_held_out_is_nested_and_keeps_equal_questions_together():
    questions = [f"Question {n % 30}" for n in range(60)]
    fewer, more = held_out(questions, 11, "gsm8k"), held_out(questions, 21, "gsm8k")
    assert sum(fewer) == 12 and sum(more) == 22
    assert all(b for a, b in zip(fewer, more, strict=True) if a)
    assert fewer[:30] == fewer[30:]


def test_one_file_serves_only_its_own_split(tmp_path):
    file = write(tmp_path, "gsm8k_train.jsonl", [row(n) for n in range(4)])
    assert len(load(file, "train", validation=1)) == 3
    with pytest.raises(UserError, match=r"gsm8k_train\.jsonl alone is the train split"):
        load(file, "test")
    file = write(tmp_path, "platinum.jsonl", [row(n) for n in range(4)])
    assert len(load(file, "test")) == 4
    with pytest.raises(UserError, match=r"platinum\.jsonl alone is the test split"):
        load(file, "validation")


def test_data_is_found_under_jroute_data(tmp_path, monkeypatch):
    write(tmp_path / "gsm8k", "test.jsonl", [row(1)])
    write(tmp_path / "other", "test.jsonl", [row(2)])
    monkeypatch.setenv("JROUTE_DATA", str(tmp_path))
    assert load("", "test")[0].answer == "2"
    assert load("other", "test")[0].answer == "4"


def test_bad_files_are_told(tmp_path):
    with pytest.raises(UserError, match=r"no file or folder .*nowhere.*correct task\.path"):
        load(tmp_path / "nowhere", "test")
    write(tmp_path, "train.jsonl", [row(1)])
    with pytest.raises(UserError, match=r"has no test\.jsonl"):
        load(tmp_path, "test")
    with pytest.raises(UserError, match=r"validation is 500.*only 1 rows"):
        load(tmp_path, "train")
    file = write(tmp_path, "a.jsonl", [row(1), {"question": "Two?", "solution": "#### 2"}])
    with pytest.raises(UserError, match=r"a\.jsonl, test row 1 .*no field 'answer'"):
        load(file, "test")
    file = write(tmp_path, "b.jsonl", [row(1), {"question": "Two?", "answer": "2"}])
    with pytest.raises(UserError, match=r"row 1 .*does not end in '#### ' and a number"):
        load(file, "test")
    file = write(tmp_path, "c.jsonl", [row(1), {"question": "Two?", "answer": "#### two"}])
    with pytest.raises(UserError, match=r"row 1 .*does not end in '#### ' and a number"):
        load(file, "test")
    file = write(tmp_path, "d.jsonl", [row(1), {"question": " ", "answer": "#### 2"}])
    with pytest.raises(UserError, match=r"row 1 .*'question' is not a text"):
        load(file, "test")
    file = tmp_path / "e.jsonl"
    file.write_text(json.dumps(row(1)) + '\n{"question": "Two?", "answer"\n')
    with pytest.raises(UserError, match=r"e\.jsonl, line 2 is not valid JSON"):
        load(file, "test")
    file.write_text("")
    with pytest.raises(UserError, match=r"e\.jsonl is empty"):
        load(file, "test")


def test_nothing_is_printed_or_left_behind(tmp_path, monkeypatch, capfd):
    temporary, home = tmp_path / "tmp", tmp_path / "home"
    temporary.mkdir()
    home.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(home))
    file = write(tmp_path, "test.jsonl", [row(1)])
    logged: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", logged.append)
    monkeypatch.setattr(logging.getLogger("datasets"), "handlers", [handler])
    bars = datasets.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    load(file, "test")
    file.write_text("{")
    with pytest.raises(UserError):
        load(file, "test")
    assert (list(temporary.iterdir()), list(home.iterdir())) == ([], [])
    assert (capfd.readouterr(), logged) == (("", ""), [])
    assert datasets.are_progress_bars_disabled() == bars
    assert datasets.logging.get_verbosity() == verbosity


def test_hub_is_asked_for_the_right_split(monkeypatch):
    calls = []

    def fake(*args, **kwargs):
        calls.append((args, kwargs))
        return datasets.Dataset.from_list([row(n) for n in range(10)])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    assert [p.id for p in load("", "test")] == [f"gsm8k/test/{n}" for n in range(10)]
    assert len(load("", "validation", validation=4)) == 4
    assert calls == [
        (("openai/gsm8k", "main"), {"split": "test"}),
        (("openai/gsm8k", "main"), {"split": "train"}),
    ]


def test_unreachable_hub_is_told(monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError("the wire is cut")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"openai/gsm8k.*the wire is cut.*task\.path or \$JROUTE"):
        load("", "test")


def test_real_counts_and_split(real_data):
    train, validation, test = (load("gsm8k", s) for s in ("train", "validation", "test"))
    assert (len(train), len(validation), len(test)) == (6973, 500, 1319)
    rows = sorted(int(p.id.removeprefix("gsm8k/train/")) for p in train + validation)
    assert rows == list(range(7473))
    assert not {p.question for p in train} & {p.question for p in validation}
    assert not {p.question for p in train + validation} & {p.question for p in test}
    assert [p.id for p in test] == [f"gsm8k/test/{n}" for n in range(1319)]
    assert test[0].answer == "18" and test[0].question.startswith("Janet")
    # The rule is fixed: every release must hold out the same rows.
    assert [p.id for p in validation[:3]] == [f"gsm8k/train/{n}" for n in (10, 51, 54)]
    digest = hashlib.sha256("\n".join(p.id for p in validation).encode()).hexdigest()
    assert digest[:16] == "ff9be74f15a65705"


def test_real_golds_are_read_from_their_own_solutions(real_data):
    """All 8,792 of them, with the official text, bare and wrapped in other common forms."""
    count = 0
    for name in ("train", "test"):
        for line in (real_data / "gsm8k" / f"{name}.jsonl").read_text("utf-8").splitlines():
            text = json.loads(line)["answer"]
            gold = text.split("#### ")[1].replace(",", "")
            assert re.fullmatch(r"-?[0-9]+", gold)
            steps = text.split("####")[0]
            for completion in (text, f"{steps}\\boxed{{{gold}}}", f"{steps}The answer is {gold}."):
                assert is_correct(parse_answer(completion), gold), completion
            assert is_correct(parse_answer(text + "\n", truncated=True), gold)
            if "answer" not in steps.lower():
                assert parse_answer(steps, truncated=True).status == "truncated"
            count += 1
    assert count == 8792


def test_real_solutions_have_no_annotations(real_data):
    for problem in load("gsm8k", "train"):
        assert problem.solution and "<<" not in problem.solution and "##" not in problem.solution
        assert is_correct(
            parse_answer(f"{problem.solution}\n#### {problem.answer}"), problem.answer
        )
