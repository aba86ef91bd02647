"""How commands end."""

import signal
import subprocess
import sys

import pytest

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
