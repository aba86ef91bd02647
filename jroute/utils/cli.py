"""What all commands share: how they end when the input is wrong or when they are interrupted."""

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from jroute.utils.errors import UserError


def door(main: Callable[[Sequence[str] | None], None]) -> Callable[..., int]:
    """Turn the body of a command into its entry point.

    The wrapped function returns the exit status: 0, or 2 after a ``UserError``, whose sentence
    it prints on standard error. Every other exception passes through.

    Use it as ``@door def main(argv): ...`` and ``enter(main)``.
    """

    @functools.wraps(main)
    def inside(argv: Sequence[str] | None = None) -> int:
        try:
            main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        return 0

    return inside


def enter(main: Callable[[], int], interrupted: str) -> NoReturn:
    """Run a command and leave the process with its status.

    Ctrl-C and SIGTERM unwind the command, so that it cleans up behind itself, and end it with
    status 130.

    Args:
        main: What ``door`` made.
        interrupted: What to tell a user who interrupted it.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    _log()
    try:
        status = main()
        if status and "jax" in sys.modules and sys.modules["jax"].distributed.is_initialized():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)  # the other processes would be waited for
        sys.exit(status)
    except KeyboardInterrupt:
        print(f"error: interrupted; {interrupted}", file=sys.stderr, flush=True)
        os._exit(130)  # a program may still run on the device, and leaving under it crashes


def _log() -> None:
    """What jroute has to tell while it works: one line per event, with its time."""
    lines = logging.StreamHandler()
    lines.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("jroute")
    logger.addHandler(lines)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
