"""JSON-lines files of the user's own."""

import json
from typing import Any

import pytest

from jroute.tasks import TaskConfig, load_problems
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
        (b'{"question": "B?", "answer": 2', "line 3 is not JSON"),
        (b"[1, 2]", "line 3 is not a JSON object"),
        (b"\xff\xfe", "line 3 is not JSON"),
        (b"[" * 100_000, "line 3 is not JSON"),
        (b'{"question": "B?"}', "line 3 has no field 'answer' .it has 'question'."),
        (b'{"answer": 2}', "line 3 has no field 'question'"),
        (b'{"question": null, "answer": 2}', "line 3 has no field 'question'"),
        (b'{"question": 5, "answer": 2}', "line 3: field 'question' is not a text"),
        (b'{"question": "B?", "answer": "two"}', "line 3: field 'answer' is not a number .'two'"),
        (b'{"question": "B?", "answer": "so #### 2"}', "line 3: field 'answer' is not a number"),
        (b'{"question": "B?", "answer": true}', "line 3: field 'answer' is not a number .True"),
        (b'{"question": "B?", "answer": NaN}', "line 3: field 'answer' is not a number"),
        (b'{"question": "B?", "answer": [2]}', "line 3: field 'answer' is not a number"),
        (b'{"question": "B?", "answer": "1e999999999"}', "line 3: field 'answer' is not a number"),
        (b'{"question": "B?", "answer": ' + b"9" * 5000 + b"}", "line 3"),
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
