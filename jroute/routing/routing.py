"""Streams of the residual, the matrices that mix them, and the gate that says how much.

The trunk ``S[0]`` is the residual the frozen blocks read and write; side streams are histories of
it (``jroute.routing.streams``). At a hook of a site the streams are mixed::

    S' = S + g (M S - S)        M has row sums 1, g is one number per row of the batch

Hooks lie after attention, after the MLP, and after the block; each has its own M
(``jroute.routing.operators``). In order, in block ``l``: attention reads and writes the trunk;
streams that collect attention updates receive ``a_l``; hook ``attention``; the MLP reads and writes
the trunk; streams that collect its updates receive ``m_l``; hook ``mlp``; hook ``block``; streams
that remember the trunk receive it.

* *Write-back*: the trunk goes on as ``S'[0]``. *Read-only*: ``S'[0]`` is what is read next (by the
  MLP after the hook ``attention``, else by the next block), and updates are added to the unmixed
  trunk.
* Without side streams (n = 1) the update ``u`` before the hook is scaled: ``t + u`` becomes
  ``t + (1 + g (scale - 1)) u``.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jroute.routing import operators, streams
from jroute.routing.diagnostics import StreamMetrics, stream_metrics
from jroute.routing.operators import Operator
from jroute.utils.errors import UserError
from jroute.utils.keys import Keys, keys

Hook = Literal["attention", "mlp", "block"]

LARGEST = 8
"""Streams that a configuration may have, the trunk included."""

_LARGEST_NUMBER = float(np.finfo(np.float32).max)


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
        if n > LARGEST:
            raise UserError(
                f"routing.streams has {len(self.streams)} side streams; give at most {LARGEST - 1}"
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
            if not (np.abs(numbers) <= _LARGEST_NUMBER).all():
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


def _rms(x: Float[Array, "*rest embed"]) -> Float[Array, "*rest 1"]:
    return jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-12)


def _within(
    cap: float,
    x: Float[Array, "*rest embed"],
    change: Float[Array, "*rest embed"],
    *,
    turned: bool,
) -> Float[Array, "*rest 1"]:
    """The share of ``change`` that moves ``x`` by no more than ``cap`` times its norm.

    What is ``turned`` is scaled back to the norm of ``x`` afterwards, and so moves along a chord:
    one of length ``cap`` belongs to the angle ``2 asin(cap / 2)``.
    """
    size, length = _rms(x), _rms(change)
    if not turned:
        return jnp.minimum(1.0, cap * size / length)
    angle = 2 * math.asin(min(cap / 2, 1.0))
    along = jnp.mean(x * change, axis=-1, keepdims=True) / size
    across = jnp.sqrt(jnp.maximum(length * length - along * along, 1e-12))
    # Where this is not positive, no share of the change turns as far as that.
    beyond = across * math.cos(angle) - along * math.sin(angle)
    share = size * math.sin(angle) / jnp.where(beyond > 0, beyond, 1.0)
    return jnp.where(beyond > 0, jnp.minimum(1.0, share), 1.0)


class PerLayer(NamedTuple):
    """Numbers of one block, or of all blocks stacked.

    Attributes:
        mixing: ``M - I`` of every hook as it acts.
        sink_norm: Root mean square above which a token is left alone.
    """

    mixing: Float[Array, "*layers hooks n n"]
    sink_norm: Float[Array, "*layers"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routing:
    """A routing configuration with its numbers, ready for a model of known depth.

    Attributes:
        mixing: M of every block and hook ``[layers, hooks, n, n]``.
        sites: Whether a block is a site ``[layers]``.
        sink_norms: Root mean square above which a token is left alone ``[layers]``.
        config: What it was made from (static).
    """

    mixing: Float[Array, "layers hooks n n"]
    sites: Bool[Array, " layers"]
    sink_norms: Float[Array, " layers"]
    config: RoutingConfig = field(metadata={"static": True})

    @classmethod
    def create(
        cls,
        config: RoutingConfig,
        layers: int,
        raw: Float[np.ndarray, "layers hooks *raw"] | None = None,
    ) -> "Routing":
        """Lays ``config`` out over ``layers`` blocks.

        Args:
            config: Streams and mixing.
            layers: Blocks of the model.
            raw: Learned raw weights of the operator; by default the configuration's own.

        Raises:
            UserError: A site lies outside the model; norms or weights of another depth.
        """
        sites = np.zeros(layers, bool)
        sites[config.site_indices(layers)] = True
        if config.sink_norms and len(config.sink_norms) != layers:
            raise UserError(
                f"routing.sink_norms has {len(config.sink_norms)} numbers, the model {layers} "
                "blocks; calibrate them on this model"
            )
        if config.bands > layers:
            raise UserError(
                f"routing.bands is {config.bands}, but the model has {layers} blocks; "
                "give at most one band per block"
            )
        first = config.initial_raw(layers)
        if raw is not None and raw.shape != first.shape:
            raise UserError(
                f"the mixing weights have shape {raw.shape}, this routing of {layers} blocks takes "
                f"{first.shape}; learn them with this configuration"
            )
        mixing = config.matrices(jnp.asarray(first if raw is None else raw))
        norms = config.sink_norms or (np.inf,) * layers
        return cls(mixing, jnp.asarray(sites), jnp.asarray(norms, jnp.float32), config)

    def gates(self, gate: Any, batch: int) -> Float[Array, "batch layers"]:
        """Spreads a gate over the batch and the blocks; 0 where a block is no site.

        Args:
            gate: A number, one number per row ``[batch]``, ``[batch, layers]``, or, with
                ``config.bands``, ``[batch, bands]``.
            batch: Rows of the batch.

        Raises:
            UserError: Another shape, or a value that is not finite.
        """
        layers, bands = self.sites.shape[0], self.config.bands
        try:
            values = np.asarray(gate, np.float32)
        except (TypeError, ValueError):
            raise UserError(f"gate is {gate!r}; gates are numbers") from None
        shapes = [(), (batch,), (batch, layers), *([(batch, bands)] if bands else [])]
        if values.shape not in shapes:
            per_band = f", one per prompt and band ({batch}, {bands})" if bands else ""
            raise UserError(
                f"gate has shape {values.shape}; give a number, one per prompt ({batch},)"
                f"{per_band}, or one per prompt and layer ({batch}, {layers})"
            )
        if not np.isfinite(values).all():
            raise UserError("gate holds a value that is not finite; gates are real numbers")
        if bands and values.shape == (batch, bands):
            values = values[:, np.arange(layers) * bands // layers]
        values = values.reshape(values.shape + (1,) * (2 - values.ndim))
        return jnp.asarray(
            np.where(np.asarray(self.sites)[None], np.broadcast_to(values, (batch, layers)), 0.0)
        )

    def per_layer(self) -> "PerLayer":
        """What differs from block to block, to be scanned over."""
        return PerLayer(self.config.acting(self.mixing), self.sink_norms)

    def strength(
        self,
        gate: Float[Array, " batch"],
        layer: "PerLayer",
        trunk: Float[Array, "batch seq embed"],
        positions: Int[Array, "batch seq"],
    ) -> Float[Array, "batch seq 1"]:
        """The gate of every token: that of its row, or 0 where the token is exempt.

        Whether it is depends on the token alone, so decoding agrees with the full forward.
        """
        exempt = jnp.zeros(positions.shape, bool)
        if self.config.exempt_first:
            exempt = positions == 0
        if self.config.sink_norms:
            exempt = exempt | (_rms(trunk.astype(jnp.float32))[..., 0] > layer.sink_norm)
        return jnp.where(exempt, 0.0, gate[:, None])[..., None]

    def mix(
        self,
        carried: Sequence[Array],
        trunk: Float[Array, "batch seq embed"],
        update: Float[Array, "batch seq embed"],
        acting: Float[Array, "n n"],
        strength: Float[Array, "batch seq 1"],
        valid: Bool[Array, "batch seq"] | None = None,
    ) -> tuple[Float[Array, "batch seq embed"], tuple[Array, ...], StreamMetrics | None]:
        """Mixes the streams at one hook.

        Args:
            carried: Side streams.
            trunk: The trunk.
            update: What the trunk received since the last hook or block; read without side streams.
            acting: ``M - I`` of this hook as it acts.
            strength: The gate of every token. Where it is 0 the trunk is handed back untouched, by
                a select: rounding, renormalisation and 0 * inf never reach that token.
            valid: Real tokens; asks for stream metrics.

        Returns:
            ``S'[0]``, the carried side streams, and metrics or ``None``.
        """
        config, kinds, n = self.config, self.config.streams, acting.shape[-1]
        side = streams.read(kinds, carried, trunk) if kinds else [update]
        wide = [s.astype(jnp.float32) for s in (trunk, *side)]
        sizes, scales, reads = [_rms(s) for s in wide], [jnp.ones_like(strength)] * len(wide), wide
        if config.norm_match and kinds:
            scales = [scales[0], *(sizes[0] / size for size in sizes[1:])]
            reads = [wide[0], *(s * scale for s, scale in zip(wide[1:], scales[1:], strict=True))]

        def row(i: int, keep: Array) -> tuple[Array, Array]:
            """Stream ``i`` after mixing, and the coefficients of the streams in it."""
            change = sum((acting[i, j] * reads[j] for j in range(1, n)), acting[i, 0] * reads[0])
            change = strength * change
            allowed = jnp.ones_like(strength)
            if config.cap:
                allowed = _within(config.cap, reads[i], change, turned=config.norm_match)
            new = reads[i] + allowed * change
            back = sizes[i] / _rms(new) if config.norm_match else jnp.ones_like(strength)
            mixed = jnp.where(strength == 0, keep, (new * back).astype(keep.dtype))
            own = jnp.stack([scales[j] * float(i == j) for j in range(n)])
            moved = jnp.stack([scales[j] * strength * acting[i, j] for j in range(n)])
            return mixed, (back[None] * (own + allowed[None] * moved))[..., 0]

        mixed, used = row(0, trunk)
        changed: list[Array | None] = [None] * len(kinds)
        coefficients = [used]
        for i, kind in enumerate(kinds or ("update",), 1):
            if kind in streams.OWN_ROWS:
                changed[i - 1], used = row(i, carried[i - 1])
            else:
                used = jnp.zeros_like(used).at[i].set(1.0)
            coefficients.append(used)
        found = None
        if valid is not None:
            weights = acting[0] + jnp.eye(n)[0]
            found = stream_metrics(reads, weights, trunk, mixed, valid)
            found = found._replace(coefficients=jnp.stack(coefficients).transpose(2, 3, 0, 1))
        return mixed, streams.write(kinds, carried, changed), found


def preset_names() -> list[str]:
    """Names of the presets that ship with jroute."""
    return sorted(path.stem for path in _preset_folder().glob("*.yaml"))


def routing_file(name_or_path: str) -> Path:
    """Find a routing preset by name, or a YAML file by path.

    Raises:
        UserError: Neither exists.
    """
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise UserError(
            f"routing file {path} does not exist; "
            f"give a path to a YAML file or one of {preset_names()}"
        )
    path = _preset_folder() / f"{name_or_path}.yaml"
    if not path.is_file():
        raise UserError(
            f"no routing preset is named {name_or_path!r}; presets are {', '.join(preset_names())}"
        )
    return path


def _preset_folder() -> Path:
    """``configs/routing`` beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    checkout = package.parent / "configs" / "routing"
    return checkout if checkout.is_dir() else package / "configs" / "routing"
