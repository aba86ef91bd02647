"""JSON files with a digest: whatever is damaged is a sentence, and never another value."""

import json
import random

import pytest

from jroute.utils.digested import read_digested, write_digested
from jroute.utils.errors import UserError
from jroute.utils.json_files import OpenRecord

CONTENT = {
    "split": "test",
    "n": 64,
    "accuracy": 0.640625,
    "seeds": [[0.5, -1e-9], []],
    "outcomes": "ab" * 32,
    "verdict": None,
    "own": {"nested": True, "text": "½ of them"},
}


class Stored(OpenRecord):
    """What a reader needs of it."""

    split: str
    n: int
    accuracy: float


def read(file) -> dict:
    return read_digested(file, Stored, "judge it again").model_dump(exclude_unset=True)


@pytest.mark.parametrize("indent", [2, None])
def test_every_flipped_bit_is_a_sentence_or_the_same_value(tmp_path, indent):
    file = tmp_path / "results.json"
    write_digested(file, CONTENT, indent=indent)
    assert read(file) == CONTENT
    original, same = file.read_bytes(), set()
    bits = range(len(original) * 8)
    for bit in bits if indent is None else random.Random(1).sample(bits, 1000):
        damaged = bytearray(original)
        damaged[bit // 8] ^= 1 << bit % 8
        file.write_bytes(damaged)
        try:
            assert read(file) == CONTENT
            same.add(bytes(damaged[bit // 8 - 1 : bit // 8 + 2]))
        except UserError as error:
            assert str(error).startswith(f"{file} is ") and "judge it again" in str(error)
    assert same <= {b"1E-", b"0Bd", b"bD "}  # of 1e-09 and \\u00bd


def test_a_changed_value_does_not_match(tmp_path):
    file = tmp_path / "results.json"
    write_digested(file, CONTENT)
    text = file.read_text()
    assert text.count("0.640625") == 1
    file.write_text(text.replace("0.640625", "0.648625"))
    with pytest.raises(UserError, match=r"results\.json is damaged \(it does not match its digest"):
        read(file)
    file.write_text(text.replace('"digest"', '"digesu"'))
    with pytest.raises(UserError, match="does not match its digest"):
        read(file)


def test_a_digest_covers_the_values_and_not_their_layout(tmp_path):
    file = tmp_path / "results.json"
    write_digested(file, CONTENT)
    content = json.loads(file.read_text())
    assert content.pop("digest").startswith("sha256:") and content == CONTENT
    turned = dict(reversed(json.loads(file.read_text()).items()))
    file.write_text(json.dumps(turned))
    assert read(file) == CONTENT


def test_files_of_earlier_versions_have_no_digest(tmp_path):
    file = tmp_path / "results.json"
    file.write_text(json.dumps(CONTENT))
    assert read(file) == CONTENT
    file.write_text(json.dumps({**CONTENT, "n": "64"}))
    with pytest.raises(UserError, match=r"results\.json: n must be a valid integer, not '64'"):
        read(file)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_not_written(tmp_path, number):
    file = tmp_path / "results.json"
    write_digested(file, CONTENT)
    before = file.read_bytes()
    with pytest.raises(UserError, match=r"is not written, since own\.seeds\[1\]\[0\] is not a fin"):
        write_digested(file, {**CONTENT, "own": {"n": 3, "seeds": [[1.0], [number]]}})
    assert file.read_bytes() == before and [*tmp_path.iterdir()] == [file]
