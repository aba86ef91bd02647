"""What ``--overwrite`` may delete, what is left behind, and who else is writing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jroute import convert
from jroute.checkpoint import staging
from jroute.checkpoint.conversion import convert as convert_model
from jroute.checkpoint.export import export
from jroute.utils.errors import UserError
from jroute.utils.temporary import PARTIAL, REPLACED, temporary_path
from tests.converters.tiny import CONFIG, random_tensors, write_source

DEAD = 2**22 + 1  # no process has this number


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "hf", CONFIG, random_tensors(CONFIG))


@pytest.fixture
def model(source: Path, tmp_path: Path) -> Path:
    convert_model(str(source), tmp_path / "model")
    return tmp_path / "model"


def contents(folder: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


WEB_APP = {"manifest.json": '{"name": "app", "icons": []}', "index.html": "<p>"}
FOREIGN = {
    "web app": WEB_APP,
    "web app with params": {**WEB_APP, "params/a.js": "1"},
    "nothing but a manifest": {"manifest.json": '{"format": 3, "fingerprint": "x"}'},
    "empty manifest": {"manifest.json": "{}", "params/notes.txt": "mine"},
    "manifest of ours without params": {
        "manifest.json": json.dumps({"format": 3, "fingerprint": "0" * 64})
    },
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_folders_are_never_replaced(
    source: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for file, text in FOREIGN[name].items():
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        (out / file).write_text(text)
    before = contents(out)
    for options in ([], ["--overwrite"], ["--dry-run"]):
        assert convert.main(["--source", str(source), "--out", str(out), *options]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "is not a jroute model directory" in error and "--overwrite" not in error
    assert contents(out) == before
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize(
    "file", ["thesis.tex", "params/embed_tokens/mine.txt", "model.safetensors"]
)
def test_a_model_with_somebody_s_files_in_it_is_kept(
    source: Path, model: Path, file: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / file).write_text("mine")
    (model / "params" / "_METADATA").write_text("damaged")
    for options in ([], ["--overwrite"]):
        assert convert.main(["--source", str(source), "--out", str(model), *options]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert "to another --out" in error or f"holds {file}, which is not part of" in error
        assert "with --overwrite" not in error
    assert (model / file).read_text() == "mine"


@pytest.mark.parametrize("manifest", ["{", '{"format": 1, "fingerprint": "%s"}' % ("0" * 64)])
def test_damaged_and_earlier_models_are_replaced(
    source: Path, model: Path, manifest: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "manifest.json").write_text(manifest)
    assert convert.main(["--source", str(source), "--out", str(model)]) == 2
    assert capsys.readouterr().err.strip().endswith("convert again with --overwrite")
    assert convert.main(["--source", str(source), "--out", str(model), "--overwrite"]) == 0


def test_only_our_own_leftovers_go(model: Path) -> None:
    folders = {}
    for form in (PARTIAL, REPLACED):
        path = temporary_path(model, form)
        name = path.name.replace(str(os.getpid()), str(DEAD))
        folders[form] = path.with_name(name)
        folders[form].mkdir()
        (folders[form] / "diary.txt").write_text("mine")
    staging.recover(model)
    assert all((folder / "diary.txt").read_text() == "mine" for folder in folders.values())
    for folder in folders.values():
        (folder / "diary.txt").rename(folder / "tokenizer.json")
    staging.recover(model)
    assert os.listdir(model.parent) == ["model"]


def test_an_export_can_be_given_again(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "hf"
    first = export(model, out)
    before = contents(out)
    assert convert.main(["--to-hf", str(model), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"already there: {out}\n")
    assert export(model, out) == (first.files, False)
    assert contents(out) == before
    (out / "tokenizer.json").write_text("[]")
    with pytest.raises(UserError, match="not an empty folder; choose another --out or remove it"):
        export(model, out)
    assert (out / "tokenizer.json").read_text() == "[]"


HOLD = """
import sys
from pathlib import Path
from jroute.utils.locks import owned
with owned(Path(sys.argv[1]), "it"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_writer_is_told_who_the_first_is(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / ".model.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdin is not None and first.stdout is not None
        first.stdout.readline()
        assert convert.main(["--source", str(source), "--out", str(tmp_path / "model")]) == 2
        error = capsys.readouterr().err
        assert f"is being written by process {first.pid} on {os.uname().nodename}" in error
        first.stdin.close()
    assert convert.main(["--source", str(source), "--out", str(tmp_path / "model")]) == 0
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("out", ["/", "a\0b", "x" * 300, "x" * 250, "loop", "file/model", "."])
def test_places_where_no_folder_can_be(
    source: Path,
    tmp_path: Path,
    out: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").touch()
    assert convert.main(["--source", str(source), "--out", out]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 500
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"]


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "~nobody-has-this-name"])
def test_sources_and_models_with_impossible_names(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--source", "--to-hf"):
        assert convert.main([option, name, "--out", str(tmp_path / "out")]) == 2
        assert capsys.readouterr().err.startswith("error: ")


def test_an_export_that_was_killed_within_a_file_leaves_nothing(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from jroute.utils import temporary as t; "
        "partial = t.temporary_path(Path(sys.argv[1]), t.PARTIAL); partial.mkdir(); "
        "t.temporary_path(partial / 'model.safetensors', t.HIDDEN).write_bytes(b'half')"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "hf")], check=True)
    assert len(list(tmp_path.iterdir())) == 1
    staging.recover(tmp_path / "hf")
    assert not list(tmp_path.iterdir())
