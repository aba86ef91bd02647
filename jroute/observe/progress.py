"""Progress of long work, on the terminal or in a log."""

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 30.0
"""Seconds between two updates of a bar in a log."""


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """Make a tqdm bar, which updates rarely if standard error is a log and not a terminal."""
    if not sys.stderr.isatty():
        options = {"mininterval": LOG_INTERVAL, "maxinterval": LOG_INTERVAL, **options}
    return tqdm(*args, **options)


class ByteBar:
    """A bar in bytes; it appears with the first progress, and so not before an early error."""

    def __init__(self, title: str):
        self._title = title
        self._bar: tqdm | None = None

    def __enter__(self) -> "ByteBar":
        return self

    def __call__(self, done: int, total: int) -> None:
        """Show how many bytes of how many are done."""
        if self._bar is None:
            self._bar = progress_bar(desc=self._title, total=total, unit="B", unit_scale=True)
        self._bar.update(done - self._bar.n)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()


class GenerationBar:
    """A bar of finished completions, with tokens per second and the share of busy slots.

    Pass it as ``progress`` to whatever generates. It may serve several generations, one after the
    other, and counts their completions together. It lists the programs that each may compile once.

    Args:
        total: Completions of all generations.
        title: What is generated.
        unit: What a completion is called.
        quiet: Whether to print nothing.
    """

    def __init__(self, total: int, title: str, unit: str = "prompt", *, quiet: bool = False):
        self._bar = progress_bar(total=total, desc=title, unit=unit, disable=quiet)
        self._title, self._quiet = title, quiet
        self._listed: set[tuple[Any, ...]] = set()
        self._before = self._last = 0
        self._tokens, self._started = 0, time.perf_counter()

    def __enter__(self) -> "GenerationBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()

    def __call__(self, now: Any) -> None:
        """Show a ``jroute.generate.requests.Progress``."""
        if now.finished < self._last or not now.tokens:  # another generation begins
            self._before, self._last = self._before + self._last, 0
            self._tokens, self._started = 0, time.perf_counter()
        if now.programs not in self._listed:
            self._listed.add(now.programs)
            self._list(now.programs)
        seconds = time.perf_counter() - self._started
        if now.steps and seconds > 0:
            rate = f"{now.tokens / seconds:,.0f} tokens/s"
            self._bar.set_postfix_str(f"{rate}, slots {now.occupancy:.0%} busy", refresh=False)
        self._bar.update(now.finished - self._last)
        self._last, self._tokens = now.finished, now.tokens

    def _list(self, programs: tuple[Any, ...]) -> None:
        if self._quiet:
            return
        names = ", ".join(str(program).strip() for program in programs)
        text = f"{self._title}: at most {len(programs)} programs to compile: {names}"
        self._bar.write(text, file=sys.stderr)
