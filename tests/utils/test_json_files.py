"""The JSON reader: every broken input is one sentence that names the file and the field."""

import os
import threading
from pathlib import Path

import pydantic
import pytest

from jroute.utils.errors import UserError
from jroute.utils.json_files import Record, check, parse_json, read_bytes, read_json


class Layout(Record):
    size: pydantic.PositiveInt
    scale: float = pydantic.Field(gt=0)
    steps: tuple[int, ...] = ()
    counts: dict[str, int] = pydantic.Field(default_factory=dict)


def test_valid_content_becomes_a_record(tmp_path):
    file = tmp_path / "layout.json"
    file.write_text('{"size": 3, "scale": 2, "steps": [1, 2], "new key": null}')
    assert read_json(file, Layout, "write it again") == Layout(size=3, scale=2.0, steps=(1, 2))


@pytest.mark.parametrize(
    ("text", "defect"),
    [
        ('{"scale": 1}', "f.json has no size;"),
        ('{"size": 0, "scale": 1}', "f.json: size must be greater than 0, not 0;"),
        ('{"size": 96.7, "scale": 1}', "f.json: size must be a valid integer, not 96.7;"),
        ('{"size": "8", "scale": 1}', "f.json: size must be a valid integer, not '8';"),
        ('{"size": true, "scale": 1}', "f.json: size must be a valid integer, not True;"),
        ('{"size": 1, "scale": NaN}', "f.json: scale must be a finite number, not nan;"),
        ('{"size": 1, "scale": 1e999}', "f.json: scale must be a finite number, not inf;"),
        ('{"size": 1, "scale": 1, "steps": [1, "x"]}', "f.json: steps[1] must be"),
        ("[]", "f.json must be an object, not [];"),
        ("{", "f.json is not valid JSON ("),
        ("", "f.json is not valid JSON ("),
        ("[" * 100_000, "f.json is not valid JSON (recursion limit"),
        ('{"size": ' + "9" * 5000 + "}", "f.json is not valid JSON (number out of range"),
        (b"\xff\xfe", "f.json is not valid JSON ("),
        ('{"size": "\\ud800"}', "f.json is not valid JSON ("),
    ],
)
def test_broken_content_is_one_short_sentence(text, defect):
    with pytest.raises(UserError) as refused:
        parse_json(text, Layout, "f.json", "write it again")
    message = str(refused.value)
    assert message.startswith(defect)
    assert message.endswith("; write it again")
    assert len(message) < 200


def test_checking_a_value_that_is_parsed_already():
    assert check({"size": 1, "scale": 0.5}, Layout, "here", "fix it").scale == 0.5
    with pytest.raises(UserError, match=r"here: counts\.a must be a valid integer, not 1\.5; fix"):
        check({"size": 1, "scale": 1.0, "counts": {"a": 1.5}}, Layout, "here", "fix it")


@pytest.mark.parametrize(
    ("path", "defect"),
    [
        (".", "is not a regular file"),
        ("absent.json", "is missing"),
        ("x" * 300, "cannot be read (File name too long)"),
        ("a\0b", "cannot be read (embedded null byte)"),
    ],
)
def test_paths_that_cannot_be_read(tmp_path, path, defect):
    with pytest.raises(UserError) as refused:
        read_json(Path(tmp_path / path), Layout, "fix it")
    assert defect in str(refused.value)
    assert str(refused.value).endswith("; fix it")


def test_a_file_beyond_the_limit_is_not_read(tmp_path):
    file = tmp_path / "large.json"
    file.write_text(" " * 1000)
    with pytest.raises(UserError, match="has 1,000 bytes, and at most 999 are read; shorten"):
        read_json(file, Layout, "shorten it", max_bytes=999)


def test_pipes_are_read_where_they_are_wanted_and_never_without_end(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="pipe is not a regular file; fix it"):
        read_bytes(pipe, "fix it")
    writer = threading.Thread(target=pipe.write_bytes, args=(b"seed: 3",))
    writer.start()
    assert read_bytes(pipe, "fix it", pipes=True) == b"seed: 3"
    writer.join()
    with pytest.raises(UserError, match="/dev/zero has more than 1,000 bytes; fix it"):
        read_bytes(Path("/dev/zero"), "fix it", max_bytes=1000, pipes=True)
