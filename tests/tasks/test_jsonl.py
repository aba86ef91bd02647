"""JSON-lines files of the user's own."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jroute.tasks import TaskConfig, load_problems
from jroute.tasks.answers import is_correct, parse_answer
from jroute.tasks.numbers import parse_number
from jroute.utils.errors import UserError


@pytest.fixture(autouse=True)
def _no_shared_data(monkeypatch):
    monkeypatch.delenv("JROUTE_DATA", raising=False)


def load(path, split: Any = "test", **settings):
    return load_problems(TaskConfig(name="jsonl", path=str(path), **settings), split)


def write(file, rows):
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return file


def rows(count):
    return [{"question": f"What is {n}?", "answer": n} for n in range(count)]


def test_answers_of_all_kinds_become_canonical(tmp_path):
    given = [18, 18.0, 2.5, 0.1, -3, "18", " $1,000 ", "25%", "3/4", "1/3", 1e22]
    wanted = ["18", "18", "2.5", "0.1", "-3", "18", "1000", "25", "0.75", "1/3", "1" + "0" * 22]
    file = write(tmp_path / "a.jsonl", [{"question": "?", "answer": a} for a in given])
    assert [p.answer for p in load(file)] == wanted


def test_fields_are_named_by_the_config(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"q": " What {is} it? ", "gold": 3, "answer": "no"}])
    (problem,) = load(file, question_field="q", answer_field="gold")
    assert (problem.question, problem.answer) == ("What {is} it?", "3")


def test_names_tell_lines_and_contents_apart(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(
        b'\xef\xbb\xbf{"question": "A?", "answer": 1}\r\n\n'
        b'{"question": "A?", "answer": 1}\n  \n{"question": "A?\xe2\x80\xa8B", "answer": 1}'
    )
    first, second, third = (p.id for p in load(file))
    assert [i.split("-")[0] for i in (first, second, third)] == [
        "jsonl/test/1",
        "jsonl/test/3",
        "jsonl/test/5",
    ]
    assert first.split("-")[1] == second.split("-")[1] != third.split("-")[1]
    (other,) = load(write(tmp_path / "b.jsonl", [{"question": "A?", "answer": 2}]))
    assert other.id != first


def test_folder_with_a_file_per_split(tmp_path):
    counts = {"train": 9, "validation": 4, "test": 3, "ood": 2}
    for split, count in counts.items():
        write(tmp_path / f"{split}.jsonl", rows(count))
    for split, count in counts.items():  # with a validation file nothing is held out of train
        problems = load(tmp_path, split)
        assert len(problems) == count
        assert all(p.id.startswith(f"jsonl/{split}/") for p in problems)


def test_validation_is_held_out_of_train(tmp_path):
    write(tmp_path / "train.jsonl", rows(9))
    for path in (tmp_path, tmp_path / "train.jsonl"):
        train, held = (load(path, split, validation=3) for split in ("train", "validation"))
        assert (len(train), len(held)) == (6, 3)
        assert {p.id for p in train + held} == {
            p.id for p in load(path, "train", validation=0)
        } and all(p.id.startswith("jsonl/train/") for p in held)


def test_one_file_serves_only_its_own_split(tmp_path):
    file = write(tmp_path / "mine.jsonl", rows(4))
    assert len(load(file, "test", limit=3)) == 3
    for split in ("train", "validation", "ood"):
        with pytest.raises(UserError, match=r"mine\.jsonl alone is the test split"):
            load(file, split)
    file = write(tmp_path / "my_validation.jsonl", rows(4))
    assert len(load(file, "validation")) == 4
    with pytest.raises(UserError, match="alone is the validation split"):
        load(file, "train")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": "B?", "answer": 2', "line 3 is not valid JSON"),
        (b"[1, 2]", "line 3 must be an object"),
        (b"\xff\xfe", "line 3 is not valid JSON"),
        (b"[" * 100_000, "line 3 is not valid JSON"),
        (b'{"question": "B?"}', "line 3 has no field 'answer' .it has 'question'."),
        (b'{"answer": 2}', "line 3 has no field 'question'"),
        (b'{"question": null, "answer": 2}', "line 3: field 'question' is null"),
        (b'{"question": "B?", "answer": null}', "line 3: field 'answer' is null"),
        (b'{"question": 5, "answer": 2}', "line 3: field 'question' is not a text"),
        (b'{"question": "B?", "answer": "two"}', "line 3: field 'answer' is not a number .'two'"),
        (b'{"question": "B?", "answer": "so #### 2"}', "line 3: field 'answer' is not a number"),
        (b'{"question": "B?", "answer": true}', "line 3: field 'answer' is not a number .True"),
        (b'{"question": "B?", "answer": NaN}', "line 3: field 'answer' is not a number"),
        (b'{"question": "B?", "answer": [2]}', "line 3: field 'answer' is not a number"),
        (b'{"question": "B?", "answer": "1e999999999"}', "line 3: field 'answer' is not a number"),
        (b'{"question": "B?", "answer": ' + b"9" * 5000 + b"}", "line 3"),
        (
            b'{"question": "B?", "answer": ' + b"9" * 4000 + b"}",
            "line 3: .* is not a number .a huge",
        ),
        (b'{"question": "B?", "answer": 1e400}', "line 3: field 'answer' is not a number .inf"),
        (b'{"question": "B?", "answer": 0.1234567890123456}', "line 3: .* has more digits than"),
        (
            b'{"question": "B\\ud800?", "answer": 2}',
            "line 3 is not valid JSON .*hex escape at column 22",
        ),
        (b'{"question": "B?", "x": {"y": ["\\udc00"]}, "answer": 2}', "line 3 is not valid JSON"),
        (b'{"question": "B\x00?", "answer": 2}', "line 3 is not valid JSON"),
        (b'{"question": "B?", "answer": 2, "answer": 3}', "line 3 has field 'answer' twice"),
        (b'{"question": "B?", "answer": {"value": 2}}', "line 3: field 'answer' is not a number"),
        (b'{"question": "B?", "answer": ""}', "line 3: field 'answer' is not a number"),
        (b'"' + b"x" * 10_000_000 + b'"', "line 3 must be an object, not 'xxx"),
        (b'{"question": ["' + b"x" * 9999 + b'"], "answer": 2}', "line 3: .* is not a text"),
        (b'{"' + b"x" * 9999 + b'": 1}', "line 3 has no field 'question'"),
        (b"null", "line 3 must be an object"),
    ],
)
def test_bad_lines_are_told_by_number(tmp_path, line, message):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"question": "A?", "answer": 1}\n\n' + line + b"\n")
    with pytest.raises(UserError, match=r"a\.jsonl, " + message) as caught:
        load(file)
    assert len(str(caught.value)) < 1000


def test_bad_files_are_told(tmp_path):
    with pytest.raises(UserError, match=r"jsonl has no data of its own; set task\.path"):
        load("")
    with pytest.raises(UserError, match="no file or folder"):
        load(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match=r"has no test\.jsonl"):
        load(tmp_path)
    with pytest.raises(UserError, match=r"empty\.jsonl is empty"):
        load(write(tmp_path / "empty.jsonl", []))
    write(tmp_path / "train.jsonl", rows(3))
    with pytest.raises(UserError, match=r"validation is 3.*only 3 rows"):
        load(tmp_path, "train", validation=3)


def test_a_decimal_number_is_read_as_what_was_meant(tmp_path):
    given = {
        0.1 + 0.2: "0.3",
        1.1 * 3: "3.3",
        -(0.1 + 0.7): "-0.8",
        2.675: "2.675",
        0.123456789012345: "0.123456789012345",
        1 / 3: "1/3",
        2 / 7: "2/7",
        -1 / 6: "-1/6",
        100 / 3: "100/3",
        1e100: "1" + "0" * 100,
        5e-05: "0.00005",
    }
    file = write(tmp_path / "a.jsonl", [{"question": "?", "answer": a} for a in given])
    assert [p.answer for p in load(file)] == list(given.values())
    assert is_correct(parse_answer("#### 0.3"), load(file)[0].answer)


def test_unreadable_files_are_told(tmp_path):
    (tmp_path / "test.jsonl").mkdir()
    with pytest.raises(UserError, match=r"test\.jsonl"):
        load(tmp_path)
    for content in (b"", b"\xef\xbb\xbf", b"\n \r\n"):
        (tmp_path / "a.jsonl").write_bytes(content)
        with pytest.raises(UserError, match=r"a\.jsonl is empty"):
            load(tmp_path / "a.jsonl")


GOOD = (
    b'{"question": "Is 1 + 1 = 2 \\ud83d\\ude00?", "answer": 0.25, "more": [null, {"a": "1/3"}]}\n'
)
EDIT = st.tuples(st.integers(0, 2 * len(GOOD)), st.binary(max_size=4), st.integers(0, 6))


@given(st.lists(EDIT, min_size=1, max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_damage_is_one_sentence(tmp_path_factory, edits):
    content = bytearray(GOOD * 2)
    for place, new, removed in edits:
        content[place : place + removed] = new
    file = tmp_path_factory.getbasetemp() / "damaged.jsonl"
    file.write_bytes(content)
    try:
        problems = load(file)
    except UserError as error:
        assert "damaged.jsonl" in str(error) and len(str(error)) < 1000
    else:
        assert all(parse_number(problem.answer) is not None for problem in problems)
        assert all(problem.question.encode() for problem in problems)
