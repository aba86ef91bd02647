"""How every command starts and ends: its exit status, interrupts, error messages and logging."""

import functools
import logging
import os
import select
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from jroute.utils.disk import refusal
from jroute.utils.errors import UserError
from jroute.utils.secrets import RedactingFormatter, redact_logs, redacted


@dataclass(frozen=True)
class PlanOption:
    """Options of the command itself.

    Attributes:
        plan: Print the plan, and stop.
    """

    plan: bool = False


def command(main: Callable[[Sequence[str] | None], None]) -> Callable[..., int]:
    """Turn the body of a command into a function that returns its exit status.

    The status is 0, or 2 after a ``UserError``, whose message goes to standard error, and after a
    write that the system refuses. Every other exception propagates.

    Use it as ``@command def main(argv): ...`` together with ``run_command(main, ...)``.
    """

    @functools.wraps(main)
    def main_with_status(argv: Sequence[str] | None = None) -> int:
        try:
            main(argv)
            sys.stdout.flush()
            return 0
        except UserError as error:
            sentence = str(error)
        except Exception as error:
            refused = refusal(error)
            if refused is None:
                raise
            sentence = refused.sentence()
        _print_error(sentence)  # the bars that the error interrupted have ended their lines by now
        return 2

    return main_with_status


def run_command(main: Callable[[], int], when_interrupted: str) -> NoReturn:
    """Run a command and exit the process with its status.

    Ctrl-C and SIGTERM unwind the command, so that its ``finally`` blocks run, and end the process
    with status 130. So does, with status 141 and no word, a reader of the output that has seen
    enough (``| head -1``); both are the statuses that a shell gives for the signals.

    Args:
        main: A function decorated with ``command``.
        when_interrupted: What to tell the user after an interrupt: what was kept, what to do next.
    """
    signal.signal(signal.SIGTERM, _raise_keyboard_interrupt)
    _open_standard_streams()
    _log_to_stderr()
    try:
        try:
            status = main()
        finally:
            sys.stdout.flush()  # a failure at Python's exit could not be handled
        if status and "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
            # A normal exit would wait for the other processes, which may never end.
            sys.stderr.flush()
            os._exit(status)
        sys.exit(status)
    except KeyboardInterrupt:
        with suppress(OSError):
            print(f"error: interrupted; {when_interrupted}", file=sys.stderr, flush=True)
        os._exit(130)  # a normal exit crashes while a program still runs on the device
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            os._exit(141)
        if not _output_is_refused():
            raise
        os._exit(2)  # ``command`` has said why


def _print_error(sentence: str) -> None:
    print(f"error: {redacted(sentence)}", file=sys.stderr)


def _open_standard_streams() -> None:
    """Let closed standard streams lead nowhere, or the next file would get their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))


def _reader_is_gone() -> bool:
    """Return whether standard output or error is a pipe that nobody reads any more."""
    streams = select.poll()
    for number in (1, 2):
        streams.register(number, 0)  # a gone reader is reported whatever is asked for
    return any(event & select.POLLERR for _, event in streams.poll(0))


def _output_is_refused() -> bool:
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _log_to_stderr() -> None:
    """Log the events of jroute to standard error, one line each, with the time."""
    handler = logging.StreamHandler()
    handler.setFormatter(RedactingFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("jroute")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    redact_logs()


def _raise_keyboard_interrupt(*_: object) -> None:
    raise KeyboardInterrupt
