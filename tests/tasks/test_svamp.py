"""SVAMP: the rules on small files, and the real data."""

import json

import datasets
import pytest

from jroute.tasks import TaskConfig, load_problems
from jroute.utils.errors import UserError
from tests.support import data_dir


def row(number, **fields):
    given = {
        "ID": f"chal-{number}",
        "Body": f"Dan has {number} pens",
        "Question": "How many pens does Dan have?",
        "Answer": float(number),
        "Equation": f"{number}.0",
        "Type": "Addition",
    }
    return {**given, **fields}


def load(path, **settings):
    return load_problems(TaskConfig(name="svamp", path=str(path), **settings), "test")


def write(folder, rows):
    file = folder / "SVAMP.json"
    file.write_text(json.dumps(rows), encoding="utf-8")
    return file


def test_fields(tmp_path):
    file = write(tmp_path, [row(1), row(1000, Body=" Dan has pens. ", Question=" How many? ")])
    for path in (file, tmp_path):
        first, second = load(path)
        assert first.id == "svamp/test/1"
        assert first.question == "Dan has 1 pens. How many pens does Dan have?"
        assert (first.answer, first.labels) == ("1", {"type": "Addition"})
        assert second.id == "svamp/test/1000"
        assert second.question == "Dan has pens. How many?"
        assert second.answer == "1000"
    assert [p.id for p in load(file, limit=1)] == ["svamp/test/1"]


def test_hub_parts_are_joined_in_the_order_of_the_original(monkeypatch):
    monkeypatch.delenv("JROUTE_DATA", raising=False)
    parts = {"train": [row(10, Answer="10.0"), row(2, Answer="2.0")], "test": [row(1, Answer="1")]}
    calls = []

    def fake(*args, split):
        calls.append((*args, split))
        return datasets.Dataset.from_list(parts[split])

    monkeypatch.setattr(datasets, "load_dataset", fake)
    problems = load("")
    assert [(p.id, p.answer) for p in problems] == [
        ("svamp/test/1", "1"),
        ("svamp/test/2", "2"),
        ("svamp/test/10", "10"),
    ]
    assert calls == [("ChilleD/SVAMP", None, "train"), ("ChilleD/SVAMP", None, "test")]


def test_unreachable_hub_is_told(monkeypatch):
    """No stand-in here: the tests' environment is offline, and the library says so at once."""
    monkeypatch.delenv("JROUTE_DATA", raising=False)
    with pytest.raises(UserError, match="ChilleD/SVAMP cannot be loaded from the Hugging Face hub"):
        load("")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"Answer": 1.5}, "row 1 .*Answer 1.5 is not a whole number"),
        ({"Answer": None}, "row 1.*: field 'Answer' is null"),
        ({"Body": None}, "row 1.*: field 'Body' is null"),
        ({"ID": "chal-1"}, "row 1 .*'chal-1' is not a new 'chal-' number"),
        ({"ID": "two"}, "row 1 .*'two' is not a new 'chal-' number"),
    ],
)
def test_bad_rows_are_told(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        load(write(tmp_path, [row(1), row(2, **fields)]))


def test_bad_files_are_told(tmp_path):
    with pytest.raises(UserError, match=r"has no SVAMP\.json"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"no file or folder .*gone\.json"):
        load(tmp_path / "gone.json")
    (tmp_path / "SVAMP.json").write_text('[{"ID": "chal-1"')
    with pytest.raises(UserError, match=r"SVAMP\.json is not valid JSON"):
        load(tmp_path)


def test_real_data():
    problems = load(data_dir() / "svamp")
    assert [p.id for p in problems] == [f"svamp/test/{n}" for n in range(1, 1001)]
    original = json.loads((data_dir() / "svamp" / "SVAMP.json").read_text("utf-8"))
    for problem, source in zip(problems, original, strict=True):
        assert problem.answer == str(int(source["Answer"]))
        assert float(problem.answer) == source["Answer"]
        assert problem.question.startswith(source["Body"])
        assert problem.question.endswith(" " + source["Question"])
        ended = source["Body"].endswith(".")
        assert len(problem.question) == len(source["Body"] + source["Question"]) + 2 - ended
    assert problems[0].question == (
        "Each pack of dvds costs 76 dollars. If there is a discount of 25 dollars on each pack. "
        "How much do you have to pay to buy each pack?"
    )
    assert problems[0].answer == "51"
