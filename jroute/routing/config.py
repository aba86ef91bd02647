"""The configuration of a routing: streams, mixing operator, hooks, sites, and guards."""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jroute.routing import operators, streams
from jroute.routing.operators import Operator
from jroute.utils.errors import UserError
from jroute.utils.keys import Keys, keys

Hook = Literal["attention", "mlp", "block"]

MAX_STREAMS = 8
"""Streams that a configuration may have, the trunk included."""

_MAX_FLOAT32 = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class RoutingConfig:
    """Streams and mixing of one model; a preset in ``configs/routing/`` or a file like it.

    Attributes:
        streams: Kinds of the side streams, in order; stream 0 is always the trunk. None at all
            scales the blocks' updates by ``scale`` instead.
        operator: How M is made (see ``jroute.routing.operators``).
        strength: How much all mixing over depth adds up to, from 0 to 1; where ``operator`` starts.
        stationary: For ``softmax``: the shares, summing to 1, in which all streams mix towards one
            another at the start; empty is equal shares, which other operators always have.
        diagonal: For ``softmax``, instead of ``strength``: the logit of every diagonal.
        rows: The leading rows of M for ``fixed``, each summing to 1; rows not given are identity.
        scale: For n = 1: what updates are multiplied by at gate 1.
        hooks: Where in a block mixing happens.
        sites: Blocks where mixing happens: indices from 0, ranges like ``2-5`` (both ends
            included), or ranges of depth like ``0.25-0.75``; empty means all of them.
        injection: ``write_back`` or ``read_only``.
        readout: What becomes of the trunk: ``trunk`` takes what row 0 of M brings it, ``mean`` the
            mean of what all rows bring their streams, which is nothing if M is doubly stochastic.
        norm_match: Scale every side stream to the trunk's root mean square to mix it, token by
            token, and scale what mixing has changed back to the norm it had: streams only turn.
        exempt_first: Leave the first token of every row alone, on which attention sinks rest.
        sink_norms: One per block: leave tokens alone whose trunk has a larger root mean square.
        cap: Largest change of a stream by mixing, relative to its norm, whatever other guards do;
            0 is no limit.
        bands: Number of equal parts of the depth that a gate per prompt and band has; 0 for none.
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
                f"routing.streams has {len(self.streams)} side streams; give at most {MAX_STREAMS - 1}"
            )
        for stream in self.streams:
            if not streams.is_known(stream):
                raise UserError(
                    f"routing.streams: unknown stream {stream!r}; known are "
                    f"{', '.join(streams.KINDS)} (k from 1, rate above 0 and at most 1)"
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
        # Their order is that of the block, so that one choice of hooks has one form.
        object.__setattr__(self, "hooks", tuple(h for h in get_args(Hook) if h in self.hooks))
        if self.cap < 0 or self.bands < 0:
            raise UserError("routing.cap and routing.bands must not be negative; 0 is none")
        for site in self.sites:
            _site_range(site, layers=1, check=False)

    def _check_finite(self) -> None:
        for name in ("strength", "stationary", "diagonal", "rows", "scale", "sink_norms", "cap"):
            value = getattr(self, name)
            numbers = np.hstack(value if isinstance(value, tuple) else [value]) if value else 0.0
            if not (np.abs(numbers) <= _MAX_FLOAT32).all():
                raise UserError(
                    f"routing.{name} holds a number that is not finite in float32: {value}; "
                    "give finite numbers"
                )

    def _check_operator(self, n: int) -> None:
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
        if self.operator == "permutations" and n > operators.LARGEST_PERMUTATIONS:
            raise UserError(
                f"routing.operator 'permutations' weighs all {n}! of them; it takes at most "
                f"{operators.LARGEST_PERMUTATIONS} streams, use sinkhorn for {n}"
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
        """Blocks of a model of ``layers`` blocks where mixing happens, in order.

        Raises:
            UserError: A site lies outside the model.
        """
        if not self.sites:
            return list(range(layers))
        return sorted({i for site in self.sites for i in _site_range(site, layers=layers)})

    def initial_raw(self, layers: int) -> Float[np.ndarray, "layers hooks *raw"]:
        """Raw weights of the operator for every block and hook, before any training."""
        n = self.size
        if self.operator == "fixed" or n == 1:
            return np.zeros((layers, len(self.hooks), 0), np.float32)
        if self.diagonal is not None:
            one = (self.diagonal * np.eye(n)).astype(np.float32)
        else:
            applications = len(self.site_indices(layers)) * len(self.hooks)
            strength = DEFAULT_STRENGTH if self.strength is None else self.strength
            one = operators.initial(self.operator, n, strength, applications, self.stationary)
        return np.broadcast_to(one, (layers, len(self.hooks), *one.shape)).copy()

    def matrices(self, raw: Float[Array, "layers hooks *raw"]) -> Float[Array, "layers hooks n n"]:
        """M of every block and hook; without side streams the two rows of ``scale``."""
        n, shape = self.size, raw.shape[:2]
        if n == 1:
            fixed = np.array([[1.0, self.scale - 1.0], [0.0, 1.0]])
        elif self.operator == "fixed":
            fixed = np.eye(n)
            fixed[: len(self.rows)] = self.rows
        else:
            make = lambda one: operators.matrix(self.operator, one, n)  # noqa: E731
            return jax.vmap(jax.vmap(make))(raw)
        return jnp.broadcast_to(jnp.asarray(fixed, jnp.float32), (*shape, *fixed.shape))

    def acting(self, mixing: Float[Array, "*some n n"]) -> Float[Array, "*some n n"]:
        """``M - I`` as it acts: row 0 by ``readout``, and the rows that streams have themselves."""
        change = mixing - jnp.broadcast_to(jnp.eye(mixing.shape[-1]), mixing.shape)
        if not self.streams:
            return change
        if self.readout == "mean":
            change = change.at[..., 0, :].set(change.mean(axis=-2))
        acts = [True, *(kind in streams.OWN_ROWS for kind in self.streams)]
        return jnp.where(np.broadcast_to(np.array(acts)[:, None], change.shape), change, 0.0)


DEFAULT_STRENGTH = 0.5
"""Composite strength where a configuration names neither strength, diagonal nor rows."""


def _site_range(site: int | str, *, layers: int, check: bool = True) -> range:
    """The blocks that one entry of ``sites`` names."""
    text = str(site).strip()
    if re.fullmatch(r"\d+", text):
        blocks = range(int(text), int(text) + 1)
    elif match := re.fullmatch(r"(\d+)-(\d+)", text):
        blocks = range(int(match[1]), int(match[2]) + 1)
    elif match := re.fullmatch(r"(\d*\.\d+|[01])-(\d*\.\d+|[01])", text):
        low, high = float(match[1]), float(match[2])
        if low >= high or high > 1:
            raise UserError(f"routing.sites: {text!r} is no range of depth from 0.0 to 1.0")
        blocks = range(*(int(np.floor(part * layers + 0.5)) for part in (low, high)))
        if not blocks:  # narrower than a block: the one that its middle lies in
            middle = int((low + high) / 2 * layers)
            blocks = range(middle, middle + 1)
    else:
        raise UserError(
            f"routing.sites: {text!r} is no block; give an index like 3, a range like 2-5, "
            "or a range of depth like 0.25-0.75"
        )
    if check and (not blocks or blocks[-1] >= layers):
        raise UserError(f"routing.sites names {text!r}, but the model has blocks 0 to {layers - 1}")
    return blocks
