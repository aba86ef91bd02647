"""Streams of the residual, the matrix that mixes them, and the gate that says how much.

The trunk ``S[0]`` is the residual the frozen blocks read and write; side streams are histories of
it. After block ``l`` (update ``a_l + m_l``) the streams are mixed::

    S' = S + g (M[l] S - S)        M[l] has row sums 1, g is one number per row of the batch

and the trunk goes on as ``S'[0]``. In order, at every block: the block writes the trunk; streams
that collect updates receive ``a_l`` or ``m_l``; the streams are mixed; streams that remember the
trunk receive the mixed trunk ``t_l``. All streams start as the embedding ``x0``.

================  ======================================================================
``delay(k)``      reads ``t_{l-k}``
``attention``     ``x0 + a_0 + ... + a_l``
``mlp``           ``x0 + m_0 + ... + m_l``
``copies``        the trunk itself: mixing with it does nothing (a negative control)
``persistent``    only what row i of M brings it; the trunk alone is written by blocks
================  ======================================================================

Histories are recomputed from the trunk, so only row 0 of M acts on them; persistent streams use
their own rows as well.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jroute.errors import UserError
from jroute.model.diagnostics import StreamMetrics, stream_metrics

_KINDS = ("delay(k)", "attention", "mlp", "copies", "persistent")


@dataclass(frozen=True)
class RoutingConfig:
    """Streams and mixing of one model; a preset in ``configs/routing/`` or a file like it.

    Attributes:
        streams: Kinds of the side streams, in order; stream 0 is always the trunk.
        operator: How M is made: ``softmax`` of rows with ``diagonal`` on the diagonal and 0
            elsewhere, or ``fixed`` from ``rows``.
        diagonal: Logit of the diagonal for ``softmax``; 4 gives 0.948 on it with four streams.
        rows: The leading rows of M for ``fixed``, each summing to 1; rows not given are identity.
        sites: Blocks after which mixing happens, counted from 0; empty means all of them.
        norm_match: Scale every side stream to the trunk's root mean square, token by token, and
            scale the mixed trunk back to it. Turns mixing into a change of direction only.
    """

    streams: tuple[str, ...] = ("delay(1)", "attention", "mlp")
    operator: Literal["softmax", "fixed"] = "softmax"
    diagonal: float = 4.0
    rows: tuple[tuple[float, ...], ...] = ()
    sites: tuple[int, ...] = ()
    norm_match: bool = False

    def __post_init__(self) -> None:
        n = self.size
        if not self.streams:
            raise UserError(
                "routing.streams is empty; name at least one side stream, e.g. [delay(1)]"
            )
        for stream in self.streams:
            if stream not in _KINDS[1:] and not _delay(stream):
                raise UserError(
                    f"routing.streams: unknown stream {stream!r}; known are {', '.join(_KINDS)}"
                )
        if (self.operator == "fixed") != bool(self.rows):
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

    @property
    def size(self) -> int:
        """Number of streams, the trunk included."""
        return 1 + len(self.streams)

    def matrix(self) -> np.ndarray:
        """M as float32 ``[streams, streams]``."""
        matrix = np.eye(self.size)
        if self.operator == "fixed":
            matrix[: len(self.rows)] = self.rows
        else:
            logits = np.exp(matrix * self.diagonal)
            matrix = logits / logits.sum(axis=1, keepdims=True)
        return matrix.astype(np.float32)


def _delay(stream: str) -> int:
    """K of ``delay(k)``, or 0 for another kind."""
    match = re.fullmatch(r"delay\((\d+)\)", stream)
    return int(match.group(1)) if match else 0


def _rms(x: Float[Array, "*rest embed"]) -> Float[Array, "*rest 1"]:
    return jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-12)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routing:
    """A routing configuration with its numbers, ready for a model of known depth.

    Attributes:
        mixing: M of every block ``[layers, streams, streams]``.
        sites: Whether a block is a site ``[layers]``.
        config: What it was made from (static).
    """

    mixing: Float[Array, "layers streams streams"]
    sites: Bool[Array, " layers"]
    config: RoutingConfig = field(metadata={"static": True})

    @classmethod
    def create(cls, config: RoutingConfig, layers: int) -> "Routing":
        """Lays ``config`` out over ``layers`` blocks.

        Raises:
            UserError: A site lies outside the model.
        """
        sites = np.zeros(layers, bool)
        for site in config.sites or range(layers):
            if not 0 <= site < layers:
                raise UserError(
                    f"routing.sites names block {site}, but the model has blocks 0 to {layers - 1}"
                )
            sites[site] = True
        mixing = np.broadcast_to(config.matrix(), (layers, config.size, config.size))
        return cls(jnp.asarray(mixing), jnp.asarray(sites), config)

    def gates(self, gate: Any, batch: int) -> Float[Array, "batch layers"]:
        """Spreads a gate over the batch and the blocks; 0 where a block is no site.

        Args:
            gate: A number, one number per row ``[batch]``, or ``[batch, layers]``.
            batch: Rows of the batch.

        Raises:
            UserError: Another shape, or a value that is not finite.
        """
        layers = self.sites.shape[0]
        try:
            values = np.asarray(gate, np.float32)
        except (TypeError, ValueError):
            raise UserError(f"gate is {gate!r}; gates are numbers") from None
        if values.shape not in ((), (batch,), (batch, layers)):
            raise UserError(
                f"gate has shape {values.shape}; give a number, one per prompt ({batch},), "
                f"or one per prompt and layer ({batch}, {layers})"
            )
        if not np.isfinite(values).all():
            raise UserError("gate holds a value that is not finite; gates are real numbers")
        values = values.reshape(values.shape + (1,) * (2 - values.ndim))
        return jnp.asarray(
            np.where(np.asarray(self.sites)[None], np.broadcast_to(values, (batch, layers)), 0.0)
        )

    def start(self, x0: Float[Array, "batch seq embed"]) -> tuple[Array, ...]:
        """What the side streams carry into the first block; ``copies`` carry nothing."""
        carried = []
        for stream in self.config.streams:
            if delay := _delay(stream):
                carried.append(jnp.broadcast_to(x0, (delay, *x0.shape)))
            else:
                carried.append(jnp.zeros((0,), x0.dtype) if stream == "copies" else x0)
        return tuple(carried)

    def mix(
        self,
        carried: tuple[Array, ...],
        block: Any,
        mixing: Float[Array, "streams streams"],
        gate: Float[Array, " batch"],
        valid: Bool[Array, "batch seq"] | None = None,
    ) -> tuple[Float[Array, "batch seq embed"], tuple[Array, ...], StreamMetrics | None]:
        """Mixes the streams after one block.

        Args:
            carried: Side streams as ``start`` or the last ``mix`` left them.
            block: The block's ``attention`` and ``mlp`` updates and its output ``trunk``.
            mixing: M of this block.
            gate: Mixing strength per row. Where it is 0 the trunk is handed back untouched,
                by a select: rounding, renormalisation and 0 * inf never reach that row.
            valid: Real tokens; asks for stream metrics.

        Returns:
            The trunk for the next block, the carried side streams, and metrics or ``None``.
        """
        config, trunk = self.config, block.trunk
        # 1. streams that collect updates receive this block's
        updates = {"attention": block.attention, "mlp": block.mlp}
        carried = tuple(
            s + updates[kind] if kind in updates else s
            for kind, s in zip(config.streams, carried, strict=True)
        )
        # 2. every stream as it is read, in float32
        reads = [trunk.astype(jnp.float32)]
        size = _rms(reads[0])
        for kind, s in zip(config.streams, carried, strict=True):
            read = (trunk if kind == "copies" else s[0] if _delay(kind) else s).astype(jnp.float32)
            reads.append(read * (size / _rms(read)) if config.norm_match else read)
        # 3. mixing: row 0 makes the trunk; rows of persistent streams make those
        strength = gate[:, None, None]

        def row(i: int, dtype: jnp.dtype, keep: Array) -> Array:
            mixed = sum(
                (mixing[i, j] * s for j, s in enumerate(reads[1:], 1)), mixing[i, 0] * reads[0]
            )
            new = reads[i] + strength * (mixed - reads[i])
            if config.norm_match:
                new = new * (_rms(reads[i]) / _rms(new))
            return jnp.where(strength == 0, keep, new.astype(dtype))

        mixed = row(0, trunk.dtype, trunk)
        found = None if valid is None else stream_metrics(reads, mixing[0], trunk, mixed, valid)
        # 4. streams that remember the trunk receive the mixed one
        after = []
        for i, (kind, s) in enumerate(zip(config.streams, carried, strict=True), 1):
            if _delay(kind):
                s = jnp.concatenate([s[1:], mixed[None]])
            elif kind == "persistent":
                s = row(i, s.dtype, s)
            after.append(s)
        return mixed, tuple(after), found


def preset_names() -> list[str]:
    """Names of the presets that ship with jroute."""
    return sorted(path.stem for path in _preset_folder().glob("*.yaml"))


def routing_file(name_or_path: str) -> Path:
    """Finds a routing preset by name, or a YAML file by path.

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
