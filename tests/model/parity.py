"""The same weights in jroute and in transformers' torch, compared after every block."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jroute.model import decoder
from jroute.model.config import DecoderConfig

TOLERANCE = 1e-4


class Batch(NamedTuple):
    """Rows of tokens, padded on one side."""

    tokens: np.ndarray
    mask: np.ndarray

    @property
    def positions(self) -> np.ndarray:
        """Position of every token in its own row, -1 for padding."""
        return np.where(self.mask, np.cumsum(self.mask, axis=1) - 1, -1)


class States(NamedTuple):
    """What a model made of the real tokens of a batch, ``[layers, tokens, embed]`` and logits."""

    trunks: np.ndarray
    logits: np.ndarray


class Difference(NamedTuple):
    """Largest differences between two models, and the share of equal most likely tokens."""

    trunks: list[float]
    logits: float
    agreement: float

    @property
    def largest(self) -> float:
        """Of any block, and of the logits."""
        return max(*self.trunks, self.logits)


def batch(vocab: int, lengths: tuple[int, ...], side: str = "right", seed: int = 1) -> Batch:
    """Rows of random tokens; what stands in the padding is random as well."""
    seq = max(lengths)
    mask = np.ones((len(lengths), seq), dtype=bool)
    for row, length in enumerate(lengths):
        mask[row, slice(length, None) if side == "right" else slice(None, seq - length)] = False
    return Batch(np.random.default_rng(seed).integers(0, vocab, mask.shape), mask)


def torch_states(model: Any, inputs: Batch) -> States:
    """Runs transformers' model; its blocks are listened to, for it norms the last hidden state."""
    trunks: list[np.ndarray] = []

    def listen(_module: Any, _inputs: Any, output: Any) -> None:
        trunks.append(output.float().numpy()[inputs.mask])

    hooks = [layer.register_forward_hook(listen) for layer in model.model.layers]
    with torch.no_grad():
        logits = model(
            input_ids=torch.from_numpy(inputs.tokens),
            attention_mask=torch.from_numpy(inputs.mask.astype(np.int64)),
            position_ids=torch.from_numpy(np.maximum(inputs.positions, 0)),
        ).logits
    for hook in hooks:
        hook.remove()
    return States(np.stack(trunks), logits.float().numpy()[inputs.mask])


TRUNKS = decoder.ForwardOptions(tap=lambda block: block.trunk)


def _run(
    params: Any, config: DecoderConfig, tokens: jax.Array, positions: jax.Array
) -> tuple[jax.Array, jax.Array]:
    out = decoder.forward(params, config, tokens, positions, options=TRUNKS)
    return out.taps, decoder.unembed(params, config, out.hidden)


RUN = jax.jit(_run, static_argnums=1)


def retraced() -> Callable[..., Any]:
    """A function that JAX has not traced yet, so that a patched model is seen."""
    return jax.jit(lambda *arguments: _run(*arguments), static_argnums=1)


def jroute_states(
    params: Any, config: DecoderConfig, inputs: Batch, run: Callable[..., Any] = RUN
) -> States:
    """Runs jroute's model."""
    tokens, positions = (
        jnp.asarray(value, jnp.int32) for value in (inputs.tokens, inputs.positions)
    )
    trunks, logits = run(params, config, tokens, positions)
    assert logits.dtype == jnp.float32
    return States(
        np.asarray(trunks.astype(jnp.float32))[:, inputs.mask], np.asarray(logits)[inputs.mask]
    )


def difference(expected: States, actual: States) -> Difference:
    """How far ``actual`` is from ``expected``."""
    assert expected.trunks.shape == actual.trunks.shape
    trunks = np.abs(expected.trunks - actual.trunks).max(axis=(1, 2))
    same = expected.logits.argmax(-1) == actual.logits.argmax(-1)
    logits = np.abs(expected.logits - actual.logits).max()
    return Difference([float(one) for one in trunks], float(logits), float(same.mean()))
