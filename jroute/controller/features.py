"""What a controller sees of a prompt: its length and counts, and one prefill of the plain model.

No feature depends on the task; the same numbers are read from any prompt of any model:
token count, length bucket, entropy and margin of the first answer token; numbers and sentences in
the text; how different the streams are at a few depths; and hidden states at those depths, both of
the last prompt token and averaged over the prompt. Hidden states are reduced by principal
components. Means, scales and components are fitted on train prompts only.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jroute.distributed.mesh import fetch, place, replicate
from jroute.generate.finite import not_finite
from jroute.generate.shapes import bucket, check_context, pad_rows
from jroute.model.config import DecoderConfig
from jroute.model.decoder import ForwardOptions, forward, unembed
from jroute.model.params import Params
from jroute.routing.mixing import Routing
from jroute.utils.errors import UserError
from jroute.utils.keys import Keys, keys, restored, stored
from jroute.utils.ranges import check_ranges, whole

SCALARS = ("prompt_length", "length_bucket", "first_token_entropy", "first_token_margin")
"""Scalars that every configuration of features has."""

SHORTEST = 32
"""Padded width below which all prompts share a ``length_bucket``, the log2 of the width."""

COUNTS = ("numbers", "sentences")
STREAMS = ("diversity", "effective_streams", "rms_ratio")
"""Stream metrics at each depth: see ``jroute.routing.diagnostics``; the last is the mean root mean
square of the side streams over the trunk's."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)")

CLIP = 10.0
"""Largest distance of an observation from the train mean in standard deviations, as in CleanRL."""


@dataclass(frozen=True)
class FeatureConfig:
    """Which features a controller gets.

    Attributes:
        depths: Where hidden states are read, as fractions of the blocks (1 is after the last).
        components: Principal components to keep of all hidden states together.
        counts: Whether to count the numbers and the sentences of a prompt.
        streams: Whether to read stream metrics at the depths, at gate 0.
    """

    stored_keys: ClassVar[Keys] = keys("depths", "components", "counts", "streams")

    depths: tuple[float, ...] = (0.34, 0.67, 1.0)
    components: int = 32
    counts: bool = True
    streams: bool = True

    def __post_init__(self) -> None:
        """Refuse depths outside the model and numbers of components below 1."""
        if not self.depths or not all(0 < depth <= 1 for depth in self.depths):
            raise UserError(f"features.depths is {self.depths}; give fractions above 0, up to 1")
        check_ranges("features", self, {"components": whole(1)})


class RawFeatures(NamedTuple):
    """Features before any fitting: named scalars, and hidden states."""

    stored_keys = keys("scalars", "hidden", "names")

    scalars: Float[np.ndarray, "prompts scalars"]
    hidden: Float[np.ndarray, "prompts hidden"]
    names: tuple[str, ...] = SCALARS


def count_numbers(text: str) -> int:
    """Count the numbers of a text; ``1,250.50`` is one."""
    return len(_NUMBER.findall(text))


def count_sentences(text: str) -> int:
    """Count the sentence ends of a text: ``.``, ``!`` and ``?`` before white space."""
    return len(_SENTENCE_END.findall(text))


@partial(jax.jit, static_argnames=("config", "blocks"))
def _read(
    params: Params,
    tokens: Int[Array, "batch seq"],
    lengths: Int[Array, " batch"],
    routing: Routing | None,
    *,
    config: DecoderConfig,
    blocks: tuple[int, ...],
) -> tuple[Float[Array, "batch scalars"], Float[Array, "batch hidden"]]:
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

    # At gate 0 the routed model is the plain one bit for bit, but its streams can be measured.
    gate = None if routing is None else jnp.zeros((len(tokens), config.num_hidden_layers))
    out = forward(
        params,
        config,
        tokens,
        jnp.where(real, columns, -1),
        routing=routing,
        gate=gate,
        options=ForwardOptions(metrics=routing is not None, tap=lambda block: pooled(block.trunk)),
    )
    final = jnp.take_along_axis(out.hidden, last, axis=1)[:, 0]
    log_probs = jax.nn.log_softmax(unembed(params, config, final), axis=-1)
    entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, axis=-1)
    top = jax.lax.top_k(log_probs, 2)[0]
    scalars = [entropy, top[:, 0] - top[:, 1]]
    if out.metrics is not None:
        last_hook = jax.tree.map(lambda leaf: leaf[:, -1], out.metrics)
        sides = float(max(last_hook.rms.shape[-1] - 1, 1))
        for block in blocks:
            rms = last_hook.rms[block]
            ratio = rms[:, 1:].sum(axis=-1) / sides / jnp.maximum(rms[:, 0], 1e-20)
            scalars += [last_hook.diversity[block], last_hook.effective_streams[block], ratio]
    parts = [part for block in blocks for part in out.taps[block]]
    return jnp.stack(scalars, axis=1), jnp.concatenate(parts, axis=1)


def raw_features(
    params: Params,
    config: DecoderConfig,
    prompts: Sequence[Sequence[int]],
    features: FeatureConfig,
    *,
    slots: int,
    routing: Routing | None = None,
    texts: Sequence[str] | None = None,
    progress: Callable[[int], object] = lambda rows: None,
) -> RawFeatures:
    """Read the features of prompts, ``slots`` at a time, padded to the engine's buckets.

    Every batch has ``slots`` rows, the last of a bucket too, so a prompt's features do not depend
    on the number of prompts.

    Args:
        params: The model's parameters.
        config: The model's configuration.
        prompts: Token ids.
        features: The features to read.
        slots: Rows of a batch.
        routing: The routing whose streams to measure; None for no stream metrics.
        texts: The prompts as texts; None to count nothing.
        progress: Called after every batch with the number of its prompts.

    Raises:
        NotFiniteError: The features of a prompt are not finite.
        UserError: A prompt is empty or longer than the model's context.
    """
    blocks = tuple(max(round(depth * config.num_hidden_layers) - 1, 0) for depth in features.depths)
    routing = routing if features.streams else None
    names: list[str] = list(SCALARS)
    if routing is not None:
        names += [f"{name}_{depth:g}" for depth in features.depths for name in STREAMS]
    read = len(names)
    if features.counts and texts is not None:
        names += COUNTS
    scalars = np.zeros((len(prompts), len(names)), np.float32)
    if len(names) > read:
        counts = [(count_numbers(text), count_sentences(text)) for text in texts or ()]
        scalars[:, read:] = np.reshape(counts, (len(prompts), len(COUNTS)))
    hidden = np.zeros((len(prompts), 2 * len(blocks) * config.hidden_size), np.float32)
    streams = None if routing is None else replicate(routing)
    for rows, tokens, lengths in _batches(prompts, slots, config.max_position_embeddings):
        on_mesh = place(tokens, ("batch", "seq")), place(lengths, ("batch",))
        read_scalars, states = fetch(_read(params, *on_mesh, streams, config=config, blocks=blocks))
        for row, i in enumerate(rows):
            if not (np.isfinite(read_scalars[row]).all() and np.isfinite(states[row]).all()):
                raise not_finite("the features of prompt", i, params, config, prompts[i])
        scalars[rows, 0] = lengths[: len(rows)]
        scalars[rows, 1] = np.log2(max(tokens.shape[1], SHORTEST))
        scalars[rows, 2:read] = read_scalars[: len(rows)]
        hidden[rows] = states[: len(rows)]
        progress(len(rows))
    return RawFeatures(scalars, hidden, tuple(names))


def _batches(
    prompts: Sequence[Sequence[int]], slots: int, context: int
) -> Iterator[tuple[list[int], Int[np.ndarray, "slots seq"], Int[np.ndarray, " slots"]]]:
    """Yield the indices, tokens and lengths of ``slots`` prompts at a time."""
    groups: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        check_context(len(prompt), 0, context)
        groups.setdefault(bucket(len(prompt)), []).append(i)
    for width, members in groups.items():
        for start in range(0, len(members), slots):
            rows = members[start : start + slots]
            yield rows, *pad_rows([prompts[i] for i in rows], (slots, width))


@partial(jax.jit, static_argnames=("config",))
def _change(
    params: Params,
    tokens: Int[Array, "batch seq"],
    lengths: Int[Array, " batch"],
    routing: Routing,
    gate: Float[Array, "batch layers"],
    *,
    config: DecoderConfig,
) -> Float[Array, " batch"]:
    columns = jnp.arange(tokens.shape[1])[None]
    positions = jnp.where(columns < lengths[:, None], columns, -1)
    out = forward(
        params,
        config,
        tokens,
        positions,
        routing=routing,
        gate=gate,
        options=ForwardOptions(metrics=True),
    )
    assert out.metrics is not None
    sites = routing.sites.astype(jnp.float32)
    return jnp.einsum("lhb,l->b", out.metrics.change, sites / sites.sum()) / len(
        routing.config.hooks
    )


def trunk_change(
    params: Params,
    config: DecoderConfig,
    prompts: Sequence[Sequence[int]],
    routing: Routing,
    gates: Float[np.ndarray, "prompts layers"],
    *,
    slots: int,
) -> Float[np.ndarray, " prompts"]:
    """Measure how far gates move the trunk of prompts: ``|after - before| / |before|``.

    The mean over the tokens of a prompt, the mixing sites and their hooks, in one prefill.

    Raises:
        NotFiniteError: The trunk of a prompt is not finite.
    """
    changes, streams = np.zeros(len(prompts)), replicate(routing)
    for rows, tokens, lengths in _batches(prompts, slots, config.max_position_embeddings):
        gate = np.zeros((slots, gates.shape[1]), np.float32)
        gate[: len(rows)] = gates[rows]
        on_mesh = (
            place(tokens, ("batch", "seq")),
            place(lengths, ("batch",)),
            streams,
            place(gate, ("batch", "layers")),
        )
        changes[rows] = fetch(_change(params, *on_mesh, config=config))[: len(rows)]
        for i in rows:
            if not np.isfinite(changes[i]):
                raise not_finite(
                    "the changes of the trunk of prompt",
                    i,
                    params,
                    config,
                    prompts[i],
                    routing=routing,
                    gate=gates[i],
                )
    return changes


@dataclass(frozen=True)
class Featurizer:
    """Turns raw features into observations, with numbers fitted on train prompts.

    Attributes:
        scalar_mean: Mean of each scalar.
        scalar_scale: Standard deviation of each scalar, 1 where it is constant.
        hidden_mean: Mean hidden state.
        components: Principal directions ``[hidden, components]``, scaled so that the projections
            have unit variance on train prompts.
        scalar_names: Name of each scalar.
    """

    stored_keys: ClassVar[Keys] = keys(
        "scalar_mean", "scalar_scale", "hidden_mean", "components", "scalar_names"
    )

    scalar_mean: Float[np.ndarray, " scalars"]
    scalar_scale: Float[np.ndarray, " scalars"]
    hidden_mean: Float[np.ndarray, " hidden"]
    components: Float[np.ndarray, "hidden components"]
    scalar_names: tuple[str, ...] = SCALARS

    @classmethod
    def fit(cls, raw: RawFeatures, config: FeatureConfig) -> "Featurizer":
        """Fit means, scales and principal components."""
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
            raw.names,
        )

    def __call__(self, raw: RawFeatures) -> Float[np.ndarray, "prompts features"]:
        """Return standardised scalars, then principal components, clipped at ``CLIP``."""
        scalars = (raw.scalars - self.scalar_mean) / self.scalar_scale
        components = (raw.hidden - self.hidden_mean) @ self.components
        return np.clip(np.concatenate([scalars, components], axis=1), -CLIP, CLIP)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the name of every feature, in order."""
        return (*self.scalar_names, *(f"component_{i}" for i in range(self.components.shape[1])))

    def tree(self) -> dict[str, np.ndarray]:
        """Return the arrays to save; names as the bytes of a text."""
        names = np.frombuffer(",".join(self.scalar_names).encode(), np.uint8)
        return {**stored(self), "scalar_names": names}

    @classmethod
    def of(cls, tree: Mapping[str, Any]) -> "Featurizer":
        """Restore a featurizer from its ``tree``."""
        arrays = {name: np.asarray(array) for name, array in restored(cls, tree).items()}
        names = arrays.pop("scalar_names").astype(np.uint8).tobytes().decode().split(",")
        return cls(**arrays, scalar_names=tuple(names))
