"""Helpers for Orbax that models and training states share."""

import logging
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
    """Silence Orbax's messages for its developers on absl's logger; errors are still raised."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
