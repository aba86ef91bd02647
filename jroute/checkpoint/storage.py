"""Helpers for Orbax that models and training states share."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding


def restore_args(sharding: Sharding | None, dtype: np.dtype | None = None) -> ocp.RestoreArgs:
    """Return how to read one array: to the devices of its sharding, or else to the host."""
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype)
    return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding, dtype=dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Orbax's messages for its developers; errors are still raised.

    They go to absl's logger. Where one of several writes fails, the others end after it, and each
    would print a traceback since the event loop that waited for them is closed.
    """
    logger, unraisable = logging.getLogger("absl"), sys.unraisablehook
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = _ignore_closed_loop
    try:
        yield
        sys.unraisablehook = unraisable  # after an error, writes may still end
    finally:
        logger.setLevel(level)


def _ignore_closed_loop(failure: "sys.UnraisableHookArgs") -> None:
    if str(failure.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(failure)
