"""What a controller sees of a prompt: its length, and one prefill of the plain model.

Nothing here knows what a problem is about; the same numbers are taken of any prompt of any model:
token count, length bucket, entropy and margin of the first answer token, and hidden states at a
few depths, both of the last prompt token and averaged over the prompt. Hidden states are reduced
by principal components that are fitted on train prompts only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jroute.errors import UserError
from jroute.generate.planning import bucket, check_context
from jroute.mesh import fetch, place
from jroute.model.config import Qwen3Config
from jroute.model.qwen3 import Params, forward, unembed

SCALARS = ("prompt_length", "length_bucket", "first_token_entropy", "first_token_margin")

CLIP = 10.0
"""Standard deviations an observation may lie from the mean of train, as in CleanRL."""


@dataclass(frozen=True)
class FeatureConfig:
    """Which features a controller gets.

    Attributes:
        depths: Where hidden states are read, as fractions of the blocks (1 is after the last).
        components: Principal components kept of all hidden states together.
    """

    depths: tuple[float, ...] = (0.34, 0.67, 1.0)
    components: int = 32

    def __post_init__(self) -> None:
        if not self.depths or not all(0 < depth <= 1 for depth in self.depths):
            raise UserError(f"features.depths must be fractions in (0, 1], got {self.depths}")
        if self.components < 1:
            raise UserError(f"features.components is {self.components}; it must be at least 1")


class RawFeatures(NamedTuple):
    """Features before any fitting: scalars in the order of ``SCALARS``, and hidden states."""

    scalars: Float[np.ndarray, "prompts scalars"]
    hidden: Float[np.ndarray, "prompts hidden"]


@partial(jax.jit, static_argnames=("config", "blocks"))
def _read(
    params: Params,
    tokens: Int[Array, "batch seq"],
    lengths: Int[Array, " batch"],
    *,
    config: Qwen3Config,
    blocks: tuple[int, ...],
) -> tuple[Float[Array, "batch 2"], Float[Array, "batch hidden"]]:
    columns = jnp.arange(tokens.shape[1])[None]
    real = columns < lengths[:, None]
    last = jnp.maximum(lengths - 1, 0)[:, None, None]
    weights = real.astype(jnp.float32) / jnp.maximum(lengths, 1).astype(jnp.float32)[:, None]

    def pooled(trunk: Float[Array, "batch seq embed"]) -> Float[Array, "2 batch embed"]:
        trunk = trunk.astype(jnp.float32)
        # Direction only: the trunk's norm grows with depth and is dominated by a few tokens.
        trunk = trunk / jnp.maximum(jnp.linalg.norm(trunk, axis=-1, keepdims=True), 1e-6)
        mean = jnp.einsum("bse,bs->be", trunk, weights)
        return jnp.stack([mean, jnp.take_along_axis(trunk, last, axis=1)[:, 0]])

    out = forward(
        params, config, tokens, jnp.where(real, columns, -1), tap=lambda block: pooled(block.trunk)
    )
    final = jnp.take_along_axis(out.hidden, last, axis=1)[:, 0]
    log_probs = jax.nn.log_softmax(unembed(params, config, final), axis=-1)
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    top = jax.lax.top_k(log_probs, 2)[0]
    parts = [part for block in blocks for part in out.taps[block]]
    return jnp.stack([entropy, top[:, 0] - top[:, 1]], axis=1), jnp.concatenate(parts, axis=1)


def raw_features(
    params: Params,
    config: Qwen3Config,
    prompts: Sequence[Sequence[int]],
    features: FeatureConfig,
    *,
    slots: int,
) -> RawFeatures:
    """Reads the features of prompts, ``slots`` at a time, padded to the engine's buckets.

    The last batch of a bucket is filled up, so a prompt's features do not depend on how many
    others are asked for with it.

    Raises:
        UserError: A prompt is empty or longer than the model's context.
    """
    blocks = tuple(max(round(depth * config.num_hidden_layers) - 1, 0) for depth in features.depths)
    scalars = np.zeros((len(prompts), len(SCALARS)), np.float32)
    hidden = np.zeros((len(prompts), 2 * len(blocks) * config.hidden_size), np.float32)
    groups: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        check_context(len(prompt), 0, config.max_position_embeddings)
        groups.setdefault(bucket(len(prompt)), []).append(i)
    for width, members in groups.items():
        for start in range(0, len(members), slots):
            rows = members[start : start + slots]
            tokens, lengths = np.zeros((slots, width), np.int32), np.zeros(slots, np.int32)
            for to, i in enumerate(rows):
                tokens[to, : len(prompts[i])], lengths[to] = prompts[i], len(prompts[i])
            on_mesh = place(tokens, ("batch", "seq")), place(lengths, ("batch",))
            told, states = fetch(_read(params, *on_mesh, config=config, blocks=blocks))
            scalars[rows, 0], scalars[rows, 1] = lengths[: len(rows)], np.log2(width)
            scalars[rows, 2:], hidden[rows] = told[: len(rows)], states[: len(rows)]
    return RawFeatures(scalars, hidden)


@dataclass(frozen=True)
class Featurizer:
    """Turns raw features into observations; all its numbers come from train prompts.

    Attributes:
        scalar_mean: Mean of each scalar.
        scalar_scale: Standard deviation of each scalar, 1 where it is constant.
        hidden_mean: Mean hidden state.
        components: Principal directions ``[hidden, components]``, scaled so that the projections
            have unit variance on train prompts.
    """

    scalar_mean: Float[np.ndarray, " scalars"]
    scalar_scale: Float[np.ndarray, " scalars"]
    hidden_mean: Float[np.ndarray, " hidden"]
    components: Float[np.ndarray, "hidden components"]

    @classmethod
    def fit(cls, raw: RawFeatures, config: FeatureConfig) -> "Featurizer":
        """Fits means, scales and principal components."""
        scale = raw.scalars.std(axis=0)
        mean = raw.hidden.mean(axis=0)
        centred = (raw.hidden - mean).astype(np.float64)
        _, singular, directions = np.linalg.svd(centred, full_matrices=False)
        keep = min(config.components, int((singular > 1e-6 * max(singular[0], 1e-12)).sum()))
        deviations = singular[:keep] / len(centred) ** 0.5
        return cls(
            raw.scalars.mean(axis=0),
            np.where(scale > 1e-6, scale, 1.0).astype(np.float32),
            mean,
            (directions[:keep].T / deviations[None]).astype(np.float32),
        )

    def __call__(self, raw: RawFeatures) -> Float[np.ndarray, "prompts features"]:
        """Observations: standardised scalars, then principal components, clipped at ``CLIP``."""
        scalars = (raw.scalars - self.scalar_mean) / self.scalar_scale
        components = (raw.hidden - self.hidden_mean) @ self.components
        return np.clip(np.concatenate([scalars, components], axis=1), -CLIP, CLIP)

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every feature, in order."""
        return (*SCALARS, *(f"component_{i}" for i in range(self.components.shape[1])))

    def tree(self) -> dict[str, np.ndarray]:
        """Its arrays, to be saved."""
        return dict(vars(self))

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "Featurizer":
        """The inverse of ``tree``."""
        return cls(**{name: np.asarray(tree[name]) for name in cls.__dataclass_fields__})
