"""The YAML reader: what it reads, and one sentence for everything else."""

import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jroute.utils.errors import MAX_SHOWN, UserError, shown
from jroute.utils.yaml_files import MAX_BYTES, read_yaml


def doubled(first: str, level: str, levels: int) -> str:
    """Return nested anchors, each of which stands nine times in the next."""
    lines = [f"a0: &a0 {first}"]
    for i in range(1, levels):
        aliases = ", ".join([f"*a{i - 1}"] * 9)
        lines.append(f"a{i}: &a{i} {level.format(aliases)}")
    return "\n".join(lines)


REFUSED = {
    "a: !!int x": "line 1: not valid YAML: 'x' is not of the kind int",
    "a: !!int ''": "'' is not of the kind int",
    "a: !!float x": "'x' is not of the kind float",
    "a: !!bool x": "'x' is not of the kind bool",
    "a: !!str [x]": "expected a scalar node",
    "a: !!map [x]": "expected a mapping node",
    "a: !!binary x": "the tag 'binary' is not read",
    "a: !!timestamp x": "the tag 'timestamp' is not read",
    "a: !!set {x}": "the tag 'set' is not read",
    "a: !!omap [x: 1]": "the tag 'omap' is not read",
    "a: !!python/object/apply:os.system ['touch x']": "the tag 'python/object/apply:os.system'",
    "a: !function x.y": "the tag '!function' is not read",
    "a: !<%ff> x": "not valid YAML",
    "%YAML " + "9" * 5000 + ".1\n---\na: 1": "out of range",
    'a: "\\UFFFFFFFF"': "out of range",
    "a: " + "9" * 5000: "a number of 5000 characters",
    "a: 0x" + "f" * 5000: "a number of 5002 characters",
    "a: 1" + ":1" * 60: "a number of 121 characters",
    "[" * 100_000: "more than 50 levels deep",
    "{a: " * 5000: "more than 50 levels deep",
    "- " * 5000: "more than 50 levels deep",
    "? " * 5000: "more than 50 levels deep",
    "? [a]\n: 1": "line 1: not valid YAML: the key 'here' is not a text; quote it",
    "{a: 1}: 2": "the key 'here' is not a text",
    "1: 2": "the key '1' is not a text; quote it",
    "~: 2": "the key '~' is not a text",
    "no: 2": "the key 'no' is not a text",
    "2026-01-31: 1\n2026-01-31: 2": "duplicate key 2026-01-31",
    "a: {b: 1, b: 2}": "duplicate key b",
    doubled("[x, x, x, x, x, x, x, x, x]", "[{}]", 9): "line 6: not valid YAML: aliases make it",
    doubled("{x: 1}", "{{<<: [{}]}}", 9): "aliases make it too large",
    "a0: &a0 [x]\n" + "\n".join(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 200)): "aliases nest",
    "a: &a [*a]": "an alias stands inside its own anchor",
    "a: &a {<<: *a}": "an alias stands inside its own anchor",
    "a: *b": "undefined alias",
    "a: {<<: 3}": "expected a mapping",
    "a: \0": "unacceptable character",
    "a:\n\t- 1": "line 2: not valid YAML",
    "a: 1\n---\nb: 2": "another document",
    "a: [" + "1," * 20_000 + "]": "more than 5,000 values",
    "[1, 2]": ": must be a mapping of keys to values, not [1, 2]",
    "a: " + "x" * MAX_BYTES: "at most 262,144 are read",
}


@pytest.mark.parametrize(("text", "message"), REFUSED.items(), ids=range(len(REFUSED)))
def test_one_short_sentence_soon_and_in_little_memory(tmp_path: Path, text: str, message: str):
    file = tmp_path / "a.yaml"
    file.write_text(text, encoding="utf-8")
    if "&a" in text:  # tracing is slow
        tracemalloc.start()
    started = time.process_time()
    with pytest.raises(UserError) as caught:
        read_yaml(file)
    seconds, (_, peak) = time.process_time() - started, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    sentence = str(caught.value)
    assert sentence.startswith(str(file)) and message in sentence
    assert "\n" not in sentence and len(sentence) < len(str(file)) + 300
    assert seconds < 2 and peak < 20 * 2**20


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("", {}),
        ("\ufeffa: 1", {"a": 1}),
        ("a: 2026-01-31", {"a": "2026-01-31"}),
        ("a: =", {"a": "="}),
        ("a: &a {x: 1}\nb: {<<: *a, y: 2}", {"a": {"x": 1}, "b": {"x": 1, "y": 2}}),
        # Merged twice, and overridden each time.
        (
            "p: {b: &b {x: 1}, c: &c {<<: *b, x: 2}}\nd: {<<: *c, x: 3}",
            {"p": {"b": {"x": 1}, "c": {"x": 2}}, "d": {"x": 3}},
        ),
        ("'1': !!str 2\n'no': !!int '3'", {"1": "2", "no": 3}),
    ],
)
def test_values(tmp_path: Path, text: str, tree: object):
    file = tmp_path / "a.yaml"
    file.write_text(text, encoding="utf-8")
    assert read_yaml(file) == tree


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: 1".encode("utf-16"), "is not UTF-8 text (byte 0 is 0xff); save it as UTF-8"),
        ("a: é".encode("latin-1"), "is not UTF-8 text (byte 3 is 0xe9); save it as UTF-8"),
    ],
)
def test_other_encodings(tmp_path: Path, content: bytes, message: str):
    file = tmp_path / "a.yaml"
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(file)
    assert str(caught.value) == f"{file} {message}"


@pytest.mark.parametrize("path", ["/dev/zero", "a\0b", "x" * 300, "/etc/passwd/x", "none.yaml"])
def test_what_is_no_readable_file(path: str):
    with pytest.raises(UserError, match="give an existing configuration file"):
        read_yaml(path)


@pytest.mark.parametrize("number", ["1:30", "010", "-0_7", "1:30:00", "1:30.5"])
def test_numbers_that_two_versions_of_yaml_read_otherwise(tmp_path: Path, number: str):
    file = tmp_path / "file.yaml"
    file.write_text(f"a: 1\nseed: {number}\n")
    with pytest.raises(
        UserError, match=f"line 2: not valid YAML: {number} is a number in two ways"
    ):
        read_yaml(file)
    file.write_text(f"a: 0\nb: 0.5\nc: '{number}'\nd: 08\ne: 10:x\n")
    assert read_yaml(file) == {"a": 0, "b": 0.5, "c": number, "d": "08", "e": "10:x"}


@given(st.text(max_size=60) | st.text("[]{}:,-?!&*<a1\n '\"|>%\\", max_size=60))
def test_any_text_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, text: str):
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, encoding="utf-8", errors="replace")
    try:
        assert isinstance(read_yaml(file), dict)
    except UserError as error:
        assert str(error).startswith(str(file))


def test_shown_values_are_short():
    value: object = "x"
    for _ in range(30):
        value = [value] * 9  # 9 ** 30 texts
    for huge in (value, {"a": value}, "y" * 10**6, 10**5000, [10**5000], {1: 10**5000}):
        assert len(shown(huge)) <= MAX_SHOWN
    assert shown(["a", 1.5, None, True]) == "['a', 1.5, None, True]"
    assert shown("a\udcff") == r"'a\udcff'"
