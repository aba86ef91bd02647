"""Progress on the terminal or in a log: the only clock there is around the engine."""

import sys
import time
from types import TracebackType
from typing import Any

from tqdm import tqdm

IN_A_LOG = 30.0
"""Seconds between two states of a bar that nobody watches."""


def progress_bar(*args: Any, **options: Any) -> tqdm:
    """A tqdm bar, seldom renewed where standard error is no terminal but a log."""
    if not sys.stderr.isatty():
        options = {"mininterval": IN_A_LOG, "maxinterval": IN_A_LOG, **options}
    return tqdm(*args, **options)


class GenerationBar:
    """A bar that says how many completions are there, tokens per second, and how busy slots are.

    Give it to whatever generates, as ``progress``; it may serve several runs, one after the other,
    and counts their completions together. What each run may compile is printed once.

    Args:
        total: Completions to come in all runs.
        title: What is generated.
        unit: What one completion is called.
        quiet: Print nothing.
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
        """Show a ``jroute.generate.engine.Progress``."""
        if now.finished < self._last or not now.tokens:  # another run begins
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
