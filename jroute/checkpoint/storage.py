"""What models and learner states both need of Orbax."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Sharding


def restore_args(sharding: Sharding | None, dtype: np.dtype | None = None) -> ocp.RestoreArgs:
    """How to read one array: straight to its devices if it has a sharding, else to the host."""
    if sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray, dtype=dtype)
    return ocp.ArrayRestoreArgs(restore_type=jax.Array, sharding=sharding, dtype=dtype)


@contextmanager
def quiet() -> Iterator[None]:
    """Silences what Orbax tells its own developers through the logger of absl; it still raises."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
