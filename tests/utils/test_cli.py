"""How commands end."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from jroute.observe.progress import progress_bar
from jroute.utils.cli import command
from jroute.utils.errors import UserError

SLEEPER = """
import signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job inherits it ignored
from jroute.utils.cli import command, run_command
@command
def main(argv):
    try:
        print("inside", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
run_command(main, "nothing was written")
"""


def test_bad_input_is_one_sentence_and_status_two(capsys):
    @command
    def main(argv):
        raise UserError("no such thing; take another")

    assert main([]) == 2
    assert capsys.readouterr().err == "error: no such thing; take another\n"


def test_a_refused_write_that_nobody_caught_is_one_sentence_too(capsys, tmp_path):
    @command
    def main(argv):
        (tmp_path / "file").write_text("")
        (tmp_path / "file" / "below").write_text("")

    assert main([]) == 2
    assert capsys.readouterr().err == (
        f"error: cannot write to {tmp_path / 'file' / 'below'} (Not a directory); "
        "choose another path, or move away what is in the way\n"
    )


def test_a_defect_keeps_its_traceback():
    @command
    def main(argv):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        main([])


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_command_cleans_up(kind):
    with subprocess.Popen(
        [sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        process.send_signal(kind)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert out == "cleaned up\n"
    assert err == "error: interrupted; nothing was written\n"


PRINTER = """
import sys
from collections.abc import Sequence
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
@command
def main(argv):
    try:
        for i in range(int(sys.argv[1])):
            print("a line", i, flush=sys.argv[2] == "flushed")
        if sys.argv[2] == "refused":
            raise UserError("no such thing")
    finally:
        open(sys.argv[3], "w").write("cleaned up")
run_command(main, "nothing was written")
"""


def shell(line: str, lines: int, how: str, note: Path) -> subprocess.CompletedProcess[str]:
    """Run ``PRINTER`` in a shell line, in which ``$run`` stands for it."""
    run = [sys.executable, "-c", PRINTER, str(lines), how, str(note)]
    return subprocess.run(
        ["bash", "-c", line.replace("$run", shlex.join(run))],
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.parametrize(
    ("lines", "how"), [(100_000, "buffered"), (50, "buffered"), (50, "flushed")]
)
@pytest.mark.parametrize("pipe", ["|", "2>&1 |"])
def test_a_reader_that_has_seen_enough_ends_a_command_silently(tmp_path, lines, how, pipe):
    # ``exec <&-`` closes the pipe whether or not anything was written yet.
    line = f"$run {pipe} (read first; echo $first; exec <&-); echo ${{PIPESTATUS[0]}}"
    ended = shell(line, lines, how, tmp_path / "note")
    first, status = ended.stdout.split("\n")[:2]
    assert first == "a line 0" and ended.stderr == ""
    assert (tmp_path / "note").read_text() == "cleaned up"
    # Few lines may fit into the pipe before its reader is gone.
    assert status == "141" if lines > 50 else status in ("0", "141")


@pytest.mark.parametrize(
    ("streams", "how", "status", "stderr"),
    [
        (">&-", "buffered", 0, ""),
        ("2>&-", "buffered", 0, ""),
        ("<&- >&- 2>&-", "buffered", 0, ""),
        (">&-", "refused", 2, "error: no such thing\n"),
        ("2>&-", "refused", 2, ""),
        (
            ">/dev/full",
            "buffered",
            2,
            "error: cannot write (No space left on device); make room and give the same command "
            "again\n",
        ),
    ],
)
def test_closed_and_full_outputs(tmp_path, streams, how, status, stderr):
    ended = shell(f"$run {streams}", 3, how, tmp_path / "note")
    assert (ended.returncode, ended.stderr) == (status, stderr)
    assert (tmp_path / "note").read_text() == "cleaned up"


def test_a_sentence_has_a_line_of_its_own_after_a_progress_bar(capfd) -> None:
    @command
    def interrupted(_: Sequence[str] | None) -> None:
        def save(figure: int) -> None:
            raise UserError(f"no room for figure {figure}")

        [save(figure) for figure in progress_bar(range(3), "figures")]

    assert interrupted() == 2
    assert capfd.readouterr().err.endswith("\nerror: no room for figure 0\n")
