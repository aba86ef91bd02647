"""SHA-256 of tensors, and the fingerprint of a model's weights and config."""

import hashlib
import json
from collections.abc import Mapping

import numpy as np
from jax.typing import DTypeLike

from jroute.model.config import DecoderConfig
from jroute.utils.keys import stored

_VALUES_AT_ONCE = 2**22


def digest(tensor: np.ndarray, dtype: DTypeLike | None = None) -> str:
    """Return the SHA-256 of a tensor's values in row-major order, in hexadecimal.

    Args:
        tensor: The values.
        dtype: Type to cast them to first; by default they are hashed as they are.
    """
    values = np.ascontiguousarray(tensor).reshape(-1)
    target = values.dtype if dtype is None else np.dtype(dtype)
    if values.dtype == target:
        return hashlib.sha256(values.view(np.uint8).data).hexdigest()
    sha = hashlib.sha256()
    for start in range(0, len(values), _VALUES_AT_ONCE):
        sha.update(values[start : start + _VALUES_AT_ONCE].astype(target).view(np.uint8).data)
    return sha.hexdigest()


def fingerprint(config: DecoderConfig, dtype: DTypeLike, digests: Mapping[str, str]) -> str:
    """Return one name for a model: a SHA-256 of its config, storage type and weights.

    Args:
        config: Shape of the model.
        dtype: The type in which the weights are stored.
        digests: ``digest`` of every tensor, oriented and named as Hugging Face does.
    """
    content = {"config": stored(config), "dtype": str(np.dtype(dtype)), "tensors": dict(digests)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
