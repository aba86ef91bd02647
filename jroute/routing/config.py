"""The configuration of a routing: streams, mixing operator, hooks, sites, and guards."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jroute.routing import operators, streams
from jroute.routing.operators import Operator
from jroute.utils.errors import UserError
from jroute.utils.keys import Keys, keys
from jroute.utils.ranges import MAX_NUMBER, Range, check_ranges, whole

Hook = Literal["attention", "mlp", "block"]

MAX_STREAMS = 8
"""Most streams that a configuration may have, the trunk included."""

DEFAULT_STRENGTH = 0.5
"""Composite strength of a configuration without strength, diagonal, and rows."""

_ANY_NUMBER = Range(-MAX_NUMBER, MAX_NUMBER)
_ANY_NORM = Range(0.0, float(np.finfo(np.float32).max))


@dataclass(frozen=True)
class RoutingConfig:
    """Streams and mixing of one model: a preset in ``configs/routing/``, or a file like it.

    Attributes:
        streams: Kinds of the side streams, in order; stream 0 is always the trunk. An empty list
            scales the blocks' updates by ``scale`` instead.
        operator: The mixing operator that makes M (see ``jroute.routing.operators``).
        strength: Composite strength of all mixing over depth, from 0 to below 1; the starting point
            of ``operator``.
        stationary: For ``softmax``: shares, summing to 1, of the streams in the average towards
            which all of them mix at the start. Empty means equal shares, as other operators have.
        diagonal: For ``softmax``, instead of ``strength``: the logit of every diagonal element.
        rows: For ``fixed``: the leading rows of M, each summing to 1; further rows are identity.
        scale: Without side streams: the factor of the blocks' updates at gate 1.
        hooks: Where in a block mixing happens.
        sites: Blocks where mixing happens: indices from 0, ranges like ``2-5`` (both ends
            included), or ranges of depth like ``0.25-0.75``. Empty means all blocks.
        injection: ``write_back`` or ``read_only``.
        readout: How mixing changes the trunk: by row 0 of M (``trunk``), or by the mean of all
            rows (``mean``), which changes nothing if M is doubly stochastic.
        norm_match: Scale every side stream to the trunk's root mean square before mixing, token by
            token, and every mixed stream back to the norm it had: streams only turn.
        exempt_first: Exempt the first token of every row, where attention sinks form.
        sink_norms: One per block: exempt tokens whose trunk has a larger root mean square.
        cap: Largest change of a stream by mixing, relative to its norm, after all other guards; 0
            means no limit.
        bands: Number of equal parts of the depth in a gate per prompt and band; 0 means no bands.
    """

    stored_keys: ClassVar[Keys] = keys(
        "streams",
        "operator",
        "strength",
        "stationary",
        "diagonal",
        "rows",
        "scale",
        "hooks",
        "sites",
        "injection",
        "readout",
        "norm_match",
        "exempt_first",
        "sink_norms",
        "cap",
        "bands",
    )

    streams: tuple[str, ...] = ("delay(1)", "attention", "mlp")
    operator: Operator = "softmax"
    strength: float | None = None
    stationary: tuple[float, ...] = ()
    diagonal: float | None = None
    rows: tuple[tuple[float, ...], ...] = ()
    scale: float = 1.0
    hooks: tuple[Hook, ...] = ("block",)
    sites: tuple[int | str, ...] = ()
    injection: Literal["write_back", "read_only"] = "write_back"
    readout: Literal["trunk", "mean"] = "trunk"
    norm_match: bool = False
    exempt_first: bool = False
    sink_norms: tuple[float, ...] = ()
    cap: float = 0.0
    bands: int = 0

    def __post_init__(self) -> None:
        n = self.size
        self._check_finite()
        if n > MAX_STREAMS:
            raise UserError(
                f"routing.streams has {len(self.streams)} side streams; "
                f"give at most {MAX_STREAMS - 1}"
            )
        for stream in self.streams:
            if not streams.is_known(stream):
                raise UserError(
                    f"routing.streams: unknown stream {stream!r}; known are "
                    f"{', '.join(streams.KINDS)} (k from 1 to 999, rate above 0 and at most 1)"
                )
        self._check_operator(n)
        if self.scale != 1 and n > 1:
            raise UserError(
                "routing.scale is for routing without side streams; leave it out, or "
                "give routing.streams: []"
            )
        if not self.hooks or len(set(self.hooks)) != len(self.hooks):
            raise UserError(
                f"routing.hooks must name at least one of {', '.join(get_args(Hook))}, each once"
            )
        # In the order of the block, so that equal choices of hooks compare equal.
        object.__setattr__(self, "hooks", tuple(h for h in get_args(Hook) if h in self.hooks))
        if self.cap < 0 or self.bands < 0:
            raise UserError("routing.cap and routing.bands must not be negative; 0 turns them off")
        check_ranges("routing", self, {"bands": whole(0)})
        for site in self.sites:
            _site_range(site, layers=1, check=False)

    def _check_finite(self) -> None:
        """Raise unless every number is one, finite and of a sensible size."""
        for name in ("strength", "stationary", "diagonal", "rows", "scale", "sink_norms", "cap"):
            value = getattr(self, name)
            allowed = _ANY_NORM if name == "sink_norms" else _ANY_NUMBER
            if not all(map(allowed.holds, _flat(value))):
                raise UserError(
                    f"routing.{name} holds a number that is not finite, or too large: "
                    f"{value!r:.60}; give {allowed} each"
                )

    def _check_operator(self, n: int) -> None:
        """Raise unless operator, rows, and strength fit one another and ``n`` streams."""
        if (self.operator == "fixed") != bool(self.rows) and n > 1:
            raise UserError(
                "routing.rows belong to operator 'fixed' and only to it; give both or neither"
            )
        if len(self.rows) > n or any(len(row) != n for row in self.rows):
            raise UserError(
                f"routing.rows must be at most {n} rows of {n} numbers for {n} streams, "
                "the trunk included"
            )
        for i, row in enumerate(self.rows):
            if abs(sum(row) - 1) > 1e-6:
                raise UserError(
                    f"routing.rows[{i}] sums to {sum(row):g}; "
                    "every row of a mixing matrix must sum to 1"
                )
        if self.operator == "permutations" and n > operators.MAX_PERMUTED_STREAMS:
            raise UserError(
                f"routing.operator 'permutations' weighs all {n}! of them; it takes at most "
                f"{operators.MAX_PERMUTED_STREAMS} streams, use sinkhorn for {n}"
            )
        if self.diagonal is not None and (self.operator != "softmax" or self.strength is not None):
            raise UserError(
                "routing.diagonal is for operator 'softmax', instead of strength; give one of them"
            )
        if self.stationary and (self.operator != "softmax" or self.diagonal is not None):
            raise UserError("routing.stationary is for operator 'softmax' with a strength")
        if self.stationary and (
            len(self.stationary) != n
            or min(self.stationary) <= 0
            or abs(sum(self.stationary) - 1) > 1e-6
        ):
            raise UserError(
                f"routing.stationary is {list(self.stationary)}; give {n} numbers above 0 that sum "
                f"to 1 for {n} streams, the trunk included"
            )
        if self.strength is not None and (self.operator == "fixed" or not 0 <= self.strength < 1):
            raise UserError(
                f"routing.strength is {self.strength}; it is a number from 0 to below 1, "
                "for any operator but 'fixed'"
            )

    @property
    def size(self) -> int:
        """Number of streams, the trunk included."""
        return 1 + len(self.streams)

    def site_indices(self, layers: int) -> list[int]:
        """Return the blocks where mixing happens in a model of ``layers`` blocks, in order.

        Raises:
            UserError: A site lies outside the model.
        """
        if not self.sites:
            return list(range(layers))
        return sorted({i for site in self.sites for i in _site_range(site, layers=layers)})

    def initial_raw(self, layers: int) -> Float[np.ndarray, "layers hooks *raw"]:
        """Return the operator's raw weights for every block and hook, before any training."""
        n = self.size
        if self.operator == "fixed" or n == 1:
            return np.zeros((layers, len(self.hooks), 0), np.float32)
        if self.diagonal is not None:
            raw = (self.diagonal * np.eye(n)).astype(np.float32)
        else:
            applications = len(self.site_indices(layers)) * len(self.hooks)
            strength = DEFAULT_STRENGTH if self.strength is None else self.strength
            raw = operators.initial_raw(self.operator, n, strength, applications, self.stationary)
        return np.broadcast_to(raw, (layers, len(self.hooks), *raw.shape)).copy()

    def matrices(self, raw: Float[Array, "layers hooks *raw"]) -> Float[Array, "layers hooks n n"]:
        """Return M of every block and hook; without side streams, the two rows of ``scale``."""
        n, shape = self.size, raw.shape[:2]
        if n == 1:
            fixed = np.array([[1.0, self.scale - 1.0], [0.0, 1.0]])
        elif self.operator == "fixed":
            fixed = np.eye(n)
            fixed[: len(self.rows)] = self.rows
        else:
            make = partial(operators.matrix, self.operator, streams=n)
            return jax.vmap(jax.vmap(make))(raw)
        return jnp.broadcast_to(jnp.asarray(fixed, jnp.float32), (*shape, *fixed.shape))

    def acting(self, mixing: Float[Array, "*sites n n"]) -> Float[Array, "*sites n n"]:
        """Return ``M - I`` as it acts.

        Row 0 follows ``readout``; of the other rows only those act whose stream has its own row.
        """
        change = mixing - jnp.broadcast_to(jnp.eye(mixing.shape[-1]), mixing.shape)
        if not self.streams:
            return change
        if self.readout == "mean":
            change = change.at[..., 0, :].set(change.mean(axis=-2))
        acts = [True, *(kind in streams.OWN_ROWS for kind in self.streams)]
        return jnp.where(np.broadcast_to(np.array(acts)[:, None], change.shape), change, 0.0)


def _flat(value: Any) -> Iterator[Any]:
    """Yield the numbers of a number, of nested tuples or lists, or of ``None``, which has none."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _flat(item)
    elif value is not None:
        yield value


def _site_range(site: int | str, *, layers: int, check: bool = True) -> range:
    """Return the blocks that one entry of ``sites`` names; ``check`` that the model has them."""
    text = str(site).strip()
    if re.fullmatch(r"\d+", text):
        blocks = range(int(text), int(text) + 1)
    elif match := re.fullmatch(r"(\d+)-(\d+)", text):
        blocks = range(int(match[1]), int(match[2]) + 1)
    elif match := re.fullmatch(r"(\d*\.\d+|[01])-(\d*\.\d+|[01])", text):
        low, high = float(match[1]), float(match[2])
        if low >= high or high > 1:
            raise UserError(f"routing.sites: {text!r} is not a range of depth from 0.0 to 1.0")
        blocks = range(*(int(np.floor(part * layers + 0.5)) for part in (low, high)))
        if not blocks:  # narrower than a block: take the block of its middle
            middle = int((low + high) / 2 * layers)
            blocks = range(middle, middle + 1)
    else:
        raise UserError(
            f"routing.sites: {text!r} is not a block; give an index like 3, a range like 2-5, "
            "or a range of depth like 0.25-0.75"
        )
    if check and (not blocks or blocks[-1] >= layers):
        raise UserError(f"routing.sites names {text!r}, but the model has blocks 0 to {layers - 1}")
    return blocks
