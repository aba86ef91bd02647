"""Learned mixing weights, the base frozen: tens to hundreds of numbers in a separate file.

Only the operator's raw weights change: by Adam on the log-likelihood of the train problems'
answers through the frozen base, or by coordinate search on the share of problems that the model
solves. One small JSON file is rewritten after every step, so a killed run resumes from it and
ends with the same numbers.

Likelihood is not accuracy. On the bundled model (default routing, gate 1, 300 steps of 16 of 512
problems, learning rate 0.05) the loss of 400 test problems fell from 0.59 to 0.17 nats a token
(it is 0.57 without mixing), yet the model solved 52 % of them instead of 63 %: 42 instead of 90 %
of the class that needs no mixing, 25 instead of 4 % of the class that needs it. One mixture
serves both, and likelihood rewards most the correction of confident errors. Learned from the
latter class alone, it solved 54 % of that class. Learning works; whether it helps is decided by
the accuracy on a split.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pydantic
from jaxtyping import Array, Bool, Float, Int

from jroute.distributed.mesh import fetch, place, replicate
from jroute.generate.finite import first_not_finite, not_finite
from jroute.generate.shapes import bucket, check_context, pad_rows, positions_of
from jroute.model.config import DecoderConfig
from jroute.model.decoder import ForwardOptions, forward, unembed
from jroute.model.params import Params
from jroute.routing.gate import MAX_GATE
from jroute.routing.mixing import Routing
from jroute.utils.disk import make_folder
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.fingerprint import semantic_fingerprint
from jroute.utils.json_files import Record, read_json
from jroute.utils.keys import Keys, keys
from jroute.utils.ranges import Range, check_ranges, whole

LARGEST_SEARCH = 500
"""Numbers that a coordinate search may have; each costs two evaluations a round."""


RANGES = {
    "gate": Range(-MAX_GATE, MAX_GATE),
    **dict.fromkeys(("problems", "steps", "batch_size"), whole(1)),
    "learning_rate": Range(0.0, 1e3, above=True),
    "change": Range(0.0, 1e3, above=True),
}


@dataclass(frozen=True)
class MixingConfig:
    """Learning of mixing weights, before anything else.

    Attributes:
        method: ``none`` keeps the routing's own weights; ``gradient`` follows the log-likelihood of
            the answers; ``search`` changes one coordinate at a time for accuracy.
        gate: Gate at which the weights are learned.
        problems: Number of train problems to learn from.
        steps: Gradient steps, or trials of the search.
        batch_size: Problems of a gradient step.
        learning_rate: Learning rate of Adam.
        change: First change of a number in the search; halved every round.
    """

    stored_keys: ClassVar[Keys] = keys(
        "method", "gate", "problems", "steps", "batch_size", "learning_rate", "change"
    )

    method: Literal["none", "gradient", "search"] = "none"
    gate: float = 1.0
    problems: int = 64
    steps: int = 100
    batch_size: int = 8
    learning_rate: float = 0.03
    change: float = 0.5

    def __post_init__(self) -> None:
        check_ranges("mixing", self, RANGES)
        if not self.gate:
            raise UserError("mixing.gate is 0, where mixing does nothing; give another gate")


class Examples(NamedTuple):
    """Prompts with their answers, right-padded; ``answers`` marks the tokens to predict."""

    tokens: Int[np.ndarray, "problems seq"]
    positions: Int[np.ndarray, "problems seq"]
    answers: Bool[np.ndarray, "problems seq"]


def pad_examples(pairs: Sequence[tuple[Sequence[int], Sequence[int]]], context: int) -> Examples:
    """Lay (prompt ids, answer ids) out in rows of one width.

    Raises:
        UserError: A pair is longer than the context.
    """
    for prompt, answer in pairs:
        check_context(len(prompt) + len(answer), 0, context)
    rows = [[*prompt, *answer] for prompt, answer in pairs]
    width = bucket(max(map(len, rows)))
    tokens, lengths = pad_rows(rows, (len(rows), width))
    positions = positions_of(lengths, width)
    prompt_lengths = np.array([len(prompt) for prompt, _ in pairs])
    return Examples(tokens, positions, positions >= prompt_lengths[:, None])


def rebuilt(routing: Routing, raw: Float[Array, "layers hooks *raw"]) -> Routing:
    """Return the routing with the matrices of other raw weights, which may be traced."""
    return dataclasses.replace(routing, mixing=routing.config.matrices(raw))


@partial(jax.jit, static_argnames=("config",))
def loss(
    raw: Float[Array, "layers hooks *raw"],
    params: Params,
    routing: Routing,
    tokens: Int[Array, "batch seq"],
    positions: Int[Array, "batch seq"],
    answers: Bool[Array, "batch seq"],
    gate: Float[Array, "batch layers"],
    *,
    config: DecoderConfig,
) -> Float[Array, ""]:
    """Return the mean negative log-likelihood of an answer token, in nats, under teacher forcing.

    The backward pass computes blocks and logits again, so memory holds the states between
    blocks and the logits of one column.
    """
    out = forward(
        params,
        config,
        tokens,
        positions,
        routing=rebuilt(routing, raw),
        gate=gate,
        options=ForwardOptions(rematerialise=True),
    )

    @jax.checkpoint
    def column(pair: tuple[Array, Array]) -> Array:
        hidden, target = pair
        logits = unembed(params, config, hidden)
        chosen = jnp.take_along_axis(logits, target[:, None], axis=-1)[:, 0]
        return chosen - jax.nn.logsumexp(logits, axis=-1)

    scores = jax.lax.map(column, (out.hidden[:, :-1].swapaxes(0, 1), tokens[:, 1:].T)).T
    counted = answers[:, 1:]
    total = jnp.maximum(jnp.sum(counted), 1).astype(jnp.float32)
    return -jnp.sum(jnp.where(counted, scores, 0.0)) / total


class MixingProgress(NamedTuple):
    """The state of learning, all of which is stored in the file.

    Attributes:
        step: Steps or trials done.
        raw: The weights.
        values: Loss before every gradient step, or accuracy of every trial after the initial one.
        state: The optimizer's arrays; empty for a search.
    """

    step: int
    raw: Float[np.ndarray, "layers hooks *raw"]
    values: list[float]
    state: list[Any]


class _StoredProgress(Record):
    """The content of a file of mixing weights: ``MixingProgress`` and what decided it.

    Attributes:
        about: What decides the weights.
        step: As in ``MixingProgress``.
        finished: Whether these are the final weights.
        values: As in ``MixingProgress``.
        state: As in ``MixingProgress``.
        raw: As in ``MixingProgress``.
        digest: Fingerprint of everything else; earlier versions wrote none.
    """

    about: dict[str, Any]
    step: pydantic.NonNegativeInt
    finished: bool
    values: list[float]
    state: list[Any]
    raw: list[Any]
    digest: str | None = None


Save = Callable[[MixingProgress], None]


def learn_by_gradient(
    params: Params,
    config: DecoderConfig,
    routing: Routing,
    examples: Examples,
    mixing: MixingConfig,
    *,
    seed: int,
    progress: MixingProgress,
    save: Save,
) -> MixingProgress:
    """Adam on the raw weights; the parameters are constants of the program.

    Args:
        params: Parameters of the model.
        config: Its shape.
        routing: Streams and mixing; their configuration is kept.
        examples: Problems to learn from.
        mixing: Gate, steps and learning rate.
        seed: Of the batches, which depend on it and on the step alone.
        progress: Where to continue from.
        save: Called after every step.

    Raises:
        NotFiniteError: The states of an example are not finite.
        UserError: The gradient or the weights are not finite.
    """
    optimizer = optax.adam(mixing.learning_rate)
    raw = jnp.asarray(progress.raw)
    state = optimizer.init(raw)
    if progress.state:
        leaves, structure = jax.tree.flatten(state)
        pairs = zip(progress.state, leaves, strict=True)
        state = jax.tree.unflatten(structure, [jnp.asarray(v, like.dtype) for v, like in pairs])
    rows = min(mixing.batch_size, len(examples.tokens))
    gate = place(routing.layer_gates(mixing.gate, rows), ("batch", "layers"))
    placed = replicate(routing)

    @jax.jit
    def update(raw: Array, state: Any, gradient: Array) -> tuple[Array, Any]:
        with jax.numpy_dtype_promotion("standard"):  # optax raises a float to its integer count
            updates, state = optimizer.update(gradient, state, raw)
        return jnp.asarray(optax.apply_updates(raw, updates)), state

    values = list(progress.values)
    for step in range(progress.step, mixing.steps):
        rng = np.random.default_rng([seed, step])
        chosen = np.sort(rng.choice(len(examples.tokens), rows, replace=False))
        batch = Examples(*(part[chosen] for part in examples))
        placed_batch = (place(part, ("batch", "seq")) for part in batch)
        value, gradient = fetch(
            _value_and_gradient(replicate(raw), params, placed, *placed_batch, gate, config=config)
        )
        before, (raw, state) = raw, update(raw, state, gradient)
        if not all(np.isfinite(x).all() for x in jax.tree.leaves((value, gradient, raw, state))):
            _check_examples(params, config, rebuilt(routing, before), batch, chosen, mixing.gate)
            raise UserError(
                f"the gradient of the mixing weights is not finite at step {step}; lower "
                "mixing.gate or routing.strength, or use mixing.method search"
            )
        values.append(float(value))
        leaves = [np.asarray(leaf).tolist() for leaf in jax.tree.leaves(state)]
        progress = MixingProgress(step + 1, np.asarray(raw), [*values], leaves)
        save(progress)
    return progress


def _check_examples(
    params: Params, config: DecoderConfig, routing: Routing, batch: Examples, rows: Any, gate: float
) -> None:
    """Raise a ``NotFiniteError`` for the first example of a batch whose states are not finite."""
    (gates,) = routing.layer_gates(gate, 1)
    for row, tokens, positions in zip(rows.tolist(), batch.tokens, batch.positions, strict=True):
        ids = tokens[positions >= 0].tolist()
        if first_not_finite(params, config, ids, routing=routing, gate=gates):
            what = "the states of example"
            raise not_finite(what, row, params, config, ids, routing=routing, gate=gates)


_value_and_gradient = jax.jit(jax.value_and_grad(loss), static_argnames=("config",))


def learn_by_search(
    score: Callable[[np.ndarray], float],
    sites: Sequence[int],
    mixing: MixingConfig,
    *,
    seed: int,
    progress: MixingProgress,
    save: Save,
) -> MixingProgress:
    """Hill-climb one weight at a time, keeping changes that raise the score.

    Args:
        score: Accuracy with given raw weights.
        sites: Blocks whose weights count.
        mixing: Trials and size of changes.
        seed: Of the order, which depends on it and on the round alone.
        progress: Where to continue from.
        save: Called after every trial.

    Raises:
        UserError: There are too many numbers for a search.
    """
    raw, values = progress.raw, list(progress.values)
    numbers = searched_numbers(raw, sites)
    if not values:
        values.append(score(raw))
    for trial in range(progress.step, mixing.steps):
        turn, within = divmod(trial, 2 * len(numbers))
        order = np.random.default_rng([seed, turn]).permutation(numbers)
        tried = raw.copy()
        tried.flat[order[within // 2]] += (1 - 2 * (within % 2)) * mixing.change / 2**turn
        values.append(score(tried))
        if values[-1] > max(values[:-1]):
            raw = tried
        progress = MixingProgress(trial + 1, raw, [*values], [])
        save(progress)
    return progress


def searched_numbers(raw: np.ndarray, sites: Sequence[int]) -> list[int]:
    """Return the places of the weights that a search changes, counted through all of ``raw``.

    Raises:
        UserError: There are too many.
    """
    each = raw[0].size
    numbers = [site * each + i for site in sites for i in range(each)]
    if len(numbers) > LARGEST_SEARCH:
        raise UserError(
            f"a search over {len(numbers)} mixing weights is infeasible, it takes at most "
            f"{LARGEST_SEARCH}; name fewer routing.sites or use mixing.method gradient"
        )
    return numbers


def save_progress(
    file: Path, description: Mapping[str, Any], progress: MixingProgress, steps: int
) -> None:
    """Write the file; the optimizer's state is left out once learning has finished."""
    content = {
        "about": description,
        "step": progress.step,
        "finished": progress.step == steps,
        "values": progress.values,
        "state": [] if progress.step == steps else progress.state,
        "raw": progress.raw.tolist(),
    }
    make_folder(file.parent)
    write_json(file, {**content, "digest": semantic_fingerprint(content)}, indent=None)


def load_progress(
    file: Path, description: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[MixingProgress, bool]:
    """Read a file of mixing weights, and whether learning has finished.

    Args:
        file: The file.
        description: What must have decided the weights.
        shape: Shape of the raw weights.

    Raises:
        UserError: The file is missing or damaged, or holds weights of another description.
    """
    if not os.path.lexists(file):
        raise UserError(
            f"the mixing weights {file} are not learned yet; run python -m jroute.train first"
        )
    remedy = "remove it to learn the mixing weights again"
    stored = read_json(file, _StoredProgress, remedy)
    try:
        content = stored.model_dump(exclude={"digest"})
        if stored.digest not in (None, semantic_fingerprint(content)):
            raise UserError(f"{file} is damaged (it does not match its digest); {remedy}")
        raw = np.asarray(stored.raw, np.float32)
        if not np.isfinite(raw).all():
            raise ValueError("weights that are not finite")
    except (ValueError, TypeError) as error:
        raise UserError(f"{file} is not a file of mixing weights ({error}); {remedy}") from error
    expected = json.loads(json.dumps(description))
    different = sorted(
        name for name in {*stored.about, *expected} if stored.about.get(name) != expected.get(name)
    )
    if different:
        raise UserError(
            f"{file} holds mixing weights that were learned under other conditions (different: "
            f"{', '.join(different)}); learn them with this configuration"
        )
    if raw.shape != shape:
        raise UserError(
            f"{file} holds mixing weights of shape {raw.shape}, this routing takes {shape}; "
            "remove it to learn them again"
        )
    return MixingProgress(stored.step, raw, stored.values, stored.state), stored.finished
