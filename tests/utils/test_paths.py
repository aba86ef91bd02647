"""Paths that users give: each odd one is a sentence that names the option."""

import os
import subprocess
from pathlib import Path

import pytest

from jroute.utils.errors import UserError
from jroute.utils.paths import check_path, folder_path, output_file, output_folder


@pytest.mark.parametrize(
    ("path", "defect"),
    [
        ("", "--out is ''; give a path"),
        ("a\0b", r"--out is 'a\x00b'; give a path"),
        (3, "--out is 3; give a path"),
        (None, "--out is None; give a path"),
        ("a\ud800", "--out holds the lone surrogate"),
        ("x" * 256, "is longer than a file system allows"),
        ("ü" * 128, "is longer than a file system allows"),
        ("/x" * 2048, "is longer than a file system allows"),
    ],
)
def test_what_is_no_path(path, defect):
    with pytest.raises(UserError) as refused:
        check_path(path, "--out")
    assert defect in str(refused.value)
    assert str(refused.value).startswith("--out ")
    assert len(str(refused.value)) < 200


def test_paths_of_every_allowed_length():
    assert check_path("x" * 255, "--out") == Path("x" * 255)
    assert check_path("/x" * 2047, "--out") == Path("/x" * 2047)


@pytest.mark.parametrize("path", ["/", "//", "/tmp/..", "", "file", "file/x", "file/x/y", "loop"])
def test_folders_that_cannot_be(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")
    for check in (folder_path, output_folder):
        with pytest.raises(UserError, match=r"^--run is "):
            check(path, "--run")
    assert sorted(os.listdir()) == ["file", "loop"]


@pytest.mark.parametrize("path", ["/", ".", "file/x", "a\0b"])
def test_files_that_cannot_be(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    with pytest.raises(UserError, match=r"^--report is "):
        output_file(path, "--report")
    assert Path("file").read_text() == "mine"


def test_what_can_be_written_is_only_tried_out(tmp_path):
    assert output_folder(tmp_path / "new" / "run", "--run") == tmp_path / "new" / "run"
    assert output_file(str(tmp_path / "new" / "a.json"), "--report") == tmp_path / "new" / "a.json"
    assert output_folder(tmp_path, "--run") == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_where_the_system_refuses_to_write(tmp_path):
    with pytest.raises(UserError, match=r"^--out is '/proc/1/new'; cannot write to /proc/1 \("):
        output_folder("/proc/1/new", "--out")
    mount = ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        assert folder_path(tmp_path / "run", "--run") == tmp_path / "run"
        for check in (output_folder, output_file):
            with pytest.raises(UserError, match=r"\(Read-only file system\); choose a folder"):
                check(tmp_path / "run", "--run")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
