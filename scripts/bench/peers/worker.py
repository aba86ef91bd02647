"""The worker's end of the pipe: one side of a comparison in its own process.

Commands come as JSON lines on standard input, an answer goes out as a JSON line for each; whatever
libraries print lands on standard error. Between commands a worker waits in a read, so it uses no
processor. This file needs the standard library only: it runs in every side's own environment.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

Rows = list[list[int]]


def serve(commands: Mapping[str, Callable[..., Mapping[str, Any]]]) -> None:
    """Serve commands until standard input ends.

    A command is an object whose ``do`` names one of ``commands``; its other fields are the
    arguments. The answer is what it returned, or ``{"error": traceback}``.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = dict(commands[command.pop("do")](**command))
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


def timed(
    generate: Callable[[Rows, list[int]], Rows],
    prompts: Rows,
    new: list[int],
    groups: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Complete prompts group by group and time all groups together.

    Args:
        generate: Completes prompts; row ``i`` of its result has at least ``new[i]`` tokens.
        prompts: Token ids.
        new: Tokens to generate for each prompt.
        groups: Indices of the rows that run together.

    Returns:
        ``seconds`` of the wall and ``cpu_seconds`` of all threads; ``tokens``, each row cut to
        ``new``; ``row_steps``: rows times steps run, of which ``sum(new)`` were needed.
    """
    completed: dict[int, list[int]] = {}
    busy, started = time.process_time(), time.perf_counter()
    for group in groups:
        rows = generate([prompts[i] for i in group], [new[i] for i in group])
        completed.update((i, row[: new[i]]) for i, row in zip(group, rows, strict=True))
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
    tokens = [completed[i] for i in range(len(prompts))]
    for i, row in enumerate(tokens):
        if len(row) != new[i]:
            raise RuntimeError(f"row {i} has {len(row)} tokens, but {new[i]} were requested")
    steps = sum(len(group) * max(new[i] for i in group) for group in groups)
    return {"seconds": seconds, "cpu_seconds": cpu_seconds, "tokens": tokens, "row_steps": steps}


def static_groups(prompts: Rows, rows: int) -> list[list[int]]:
    """Group prompts by ``rows``, the longest first.

    Neighbours in length share a group, which is the least padding a static batch can have. The
    length of a completion is not known beforehand, so that cannot be sorted by.
    """
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    return [order[start : start + rows] for start in range(0, len(order), rows)]


def padded(prompts: Rows, *, left: bool, value: int = 0) -> tuple[Rows, Rows]:
    """Return prompts padded to the longest of them, and their mask."""
    width = max(map(len, prompts))
    rows, mask = [], []
    for row in prompts:
        padding = [value] * (width - len(row))
        ones, zeros = [1] * len(row), [0] * len(padding)
        rows.append(padding + row if left else row + padding)
        mask.append(zeros + ones if left else ones + zeros)
    return rows, mask


def versions(*packages: str) -> dict[str, str]:
    """Return the versions of Python and of packages, as installed here."""
    installed = {"python": ".".join(map(str, sys.version_info[:3]))}
    for name in packages:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed
