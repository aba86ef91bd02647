"""Mixing the streams of the residual: the matrices of a model of known depth, and their use.

The trunk ``S[0]`` is the residual that the frozen blocks read and write; side streams are histories
of it (``jroute.routing.streams``). At a hook of a site the streams are mixed::

    S' = S + g (M S - S)        M has row sums 1, the gate g is one number per row of the batch

Hooks follow attention, the MLP, and the block; each has its own M (``jroute.routing.operators``).
Block ``l`` proceeds in this order: attention reads and writes the trunk; streams that collect
attention updates receive ``a_l``; hook ``attention``; the MLP reads and writes the trunk; streams
that collect its updates receive ``m_l``; hook ``mlp``; hook ``block``; streams that remember the
trunk receive it.

* *Write-back*: ``S'[0]`` replaces the trunk. *Read-only*: only the next reader sees ``S'[0]`` (the
  MLP after the hook ``attention``, otherwise the next block); updates are added to the unmixed
  trunk.
* Without side streams (n = 1) the update ``u`` before the hook is scaled: ``t + u`` becomes
  ``t + (1 + g (scale - 1)) u``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jroute.routing import guards, streams
from jroute.routing.config import Hook, RoutingConfig
from jroute.routing.diagnostics import StreamMetrics, stream_metrics
from jroute.routing.gate import GateLike, check_gates
from jroute.utils.errors import UserError


class LayerRouting(NamedTuple):
    """The numbers of a routing in one block, or in all blocks stacked.

    Attributes:
        mixing: ``M - I`` of every hook as it acts.
        sink_norm: Root mean square above which a token is exempt from mixing.
    """

    mixing: Float[Array, "*layers hooks n n"]
    sink_norm: Float[Array, "*layers"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Routing:
    """A routing configuration with its numbers, ready for a model of known depth.

    Attributes:
        mixing: M of every block and hook.
        sites: Whether mixing happens in a block.
        sink_norms: Root mean square above which a token is exempt from mixing, per block.
        config: The configuration (static).
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
        """Lay ``config`` out over ``layers`` blocks.

        Args:
            config: Streams and mixing.
            layers: Number of the model's blocks.
            raw: Learned raw weights of the operator; by default the configuration's own.

        Raises:
            UserError: A site lies outside the model, or norms, bands, or weights do not fit its
                depth.
        """
        sites = np.zeros(layers, bool)
        sites[config.site_indices(layers)] = True
        if config.sink_norms and len(config.sink_norms) != layers:
            raise UserError(
                f"routing.sink_norms has {len(config.sink_norms)} numbers, but the model has "
                f"{layers} blocks; calibrate them on this model"
            )
        if config.bands > layers:
            raise UserError(
                f"routing.bands is {config.bands}, but the model has {layers} blocks; "
                "give at most one band per block"
            )
        initial = config.initial_raw(layers)
        raw = None if raw is None else np.asarray(raw)
        if raw is not None and raw.shape != initial.shape:
            raise UserError(
                f"the mixing weights have shape {raw.shape}, but this routing of {layers} blocks "
                f"takes {initial.shape}; learn them with this configuration"
            )
        if raw is not None and not np.isfinite(raw).all():
            raise UserError("the mixing weights hold a number that is not finite; learn them again")
        mixing = config.matrices(jnp.asarray(initial if raw is None else raw))
        norms = config.sink_norms or (np.inf,) * layers
        return cls(mixing, jnp.asarray(sites), jnp.asarray(norms, jnp.float32), config)

    def layer_gates(self, gate: GateLike, batch: int) -> Float[np.ndarray, "batch layers"]:
        """Spread a gate over the batch and the layers; layers that are not sites get 0.

        Args:
            gate: A number, one number per row ``[batch]``, ``[batch, layers]``, or, with
                ``config.bands``, ``[batch, bands]``.
            batch: Rows of the batch.

        Raises:
            UserError: The shape fits none of these, or a value is not finite.
        """
        layers, bands = self.sites.shape[0], self.config.bands
        try:
            if np.asarray(gate).dtype.kind in "bcOSUMm":
                raise TypeError  # not Booleans, texts, or complex numbers
            values = np.asarray(gate, np.float32)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"gate is {gate!r:.100}; gates are numbers") from None
        shapes = [(), (batch,), (batch, layers), *([(batch, bands)] if bands else [])]
        if values.shape not in shapes:
            per_band = f", one per prompt and band ({batch}, {bands})" if bands else ""
            raise UserError(
                f"gate has shape {values.shape}; give a number, one per prompt ({batch},)"
                f"{per_band}, or one per prompt and layer ({batch}, {layers})"
            )
        check_gates(values, "gate")
        if bands and values.shape == (batch, bands):
            values = values[:, np.arange(layers) * bands // layers]
        values = values.reshape(values.shape + (1,) * (2 - values.ndim))
        values = np.broadcast_to(values, (batch, layers))
        return np.where(np.asarray(self.sites)[None], values, np.float32(0))

    def per_layer(self) -> LayerRouting:
        """Return what differs from block to block, stacked to be scanned over."""
        return LayerRouting(self.config.acting(self.mixing), self.sink_norms)

    def strength(
        self,
        gate: Float[Array, " batch"],
        layer: LayerRouting,
        trunk: Float[Array, "batch seq embed"],
        positions: Int[Array, "batch seq"],
    ) -> Float[Array, "batch seq 1"]:
        """Return the gate of every token: its row's, or 0 where the token is exempt."""
        exempt = guards.exempt_tokens(self.config, trunk, positions, layer.sink_norm)
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
        """Mix the streams at one hook.

        Args:
            carried: Side streams.
            trunk: The trunk.
            update: The trunk's update since the last hook or block; mixed if there are no side
                streams.
            acting: ``M - I`` of this hook as it acts.
            strength: The gate of every token. Where it is 0 the trunk passes unchanged, by a
                select: rounding, renormalisation and 0 * inf never reach that token.
            valid: Which tokens are real. If given, stream metrics are measured.

        Returns:
            ``S'[0]``, the carried side streams, and the metrics or ``None``.
        """
        kinds, n = self.config.streams, acting.shape[-1]
        side = streams.read(kinds, carried, trunk) if kinds else [update]
        matched = guards.match_norms([trunk, *side], enabled=self.config.norm_match and bool(kinds))
        mixed, coefficients = self._mix_row(0, trunk, matched, acting, strength)
        side_mixed: list[Array | None] = [None] * len(kinds)
        rows = [coefficients]
        for i, kind in enumerate(kinds or ("update",), 1):
            if kind in streams.OWN_ROWS:
                side_mixed[i - 1], row = self._mix_row(i, carried[i - 1], matched, acting, strength)
            else:
                row = jnp.zeros_like(coefficients).at[i].set(1.0)
            rows.append(row)
        metrics = None
        if valid is not None:
            weights = acting[0] + jnp.eye(n)[0]
            metrics = stream_metrics(matched.states, weights, trunk, mixed, valid)
            metrics = metrics._replace(coefficients=jnp.stack(rows).transpose(2, 3, 0, 1))
        return mixed, streams.write(kinds, carried, side_mixed), metrics

    def _mix_row(
        self,
        i: int,
        unmixed: Float[Array, "batch seq embed"],
        matched: guards.MatchedStreams,
        acting: Float[Array, "n n"],
        strength: Float[Array, "batch seq 1"],
    ) -> tuple[Float[Array, "batch seq embed"], Float[Array, "n batch seq"]]:
        """Return stream ``i`` after mixing, and the coefficients of all streams in it."""
        states, norms, scales = matched
        n, norm_match = acting.shape[-1], self.config.norm_match
        change = sum((acting[i, j] * states[j] for j in range(1, n)), acting[i, 0] * states[0])
        change = strength * change
        share = jnp.ones_like(strength)
        if self.config.cap:
            share = guards.allowed_share(
                self.config.cap, states[i], change, norm_restored=norm_match
            )
        moved = states[i] + share * change
        back = norms[i] / guards.rms(moved) if norm_match else jnp.ones_like(strength)
        mixed = jnp.where(strength == 0, unmixed, (moved * back).astype(unmixed.dtype))
        own = jnp.stack([scales[j] * float(i == j) for j in range(n)])
        added = jnp.stack([scales[j] * strength * acting[i, j] for j in range(n)])
        return mixed, (back[None] * (own + share[None] * added))[..., 0]


class BlockStreams:
    """The side streams of one block while it runs; without a routing every method does nothing.

    Attributes:
        carried: The side streams, which are passed to the next block.
        measured: Stream metrics of every hook so far, if they are measured.
    """

    def __init__(
        self,
        routing: Routing | None,
        layer: LayerRouting | None,
        gate: Float[Array, " batch"] | None,
        index: Int[Array, ""],
        carried: tuple[Array, ...],
        positions: Int[Array, "batch seq"],
        valid: Bool[Array, "batch seq"] | None,
    ):
        """Enter a block.

        Args:
            routing: The routing, or ``None`` for the plain model.
            layer: The routing's numbers in this block.
            gate: The gate of every row in this block.
            index: Number of the block.
            carried: Side streams of the block before.
            positions: Position of every token; padding is -1.
            valid: Which tokens are real. If given, stream metrics are measured.
        """
        self._routing, self._layer, self._gate, self._index = routing, layer, gate, index
        self._positions, self._valid = positions, valid
        self.carried = carried
        self.measured: list[StreamMetrics] = []

    @property
    def read_only(self) -> bool:
        """Whether the trunk itself stays unmixed."""
        return self._routing is not None and self._routing.config.injection == "read_only"

    def receive(self, part: streams.Part, update: Float[Array, "batch seq embed"]) -> None:
        """Hand an update of the block to the streams that collect it."""
        if self._routing is not None:
            kinds = self._routing.config.streams
            self.carried = streams.receive(kinds, self.carried, part, update, self._index)

    def mix(
        self,
        hook: Hook,
        trunk: Float[Array, "batch seq embed"],
        update: Float[Array, "batch seq embed"],
    ) -> Float[Array, "batch seq embed"] | None:
        """Mix the streams and return ``S'[0]``, or ``None`` if nothing is mixed at this hook."""
        routing, layer, gate = self._routing, self._layer, self._gate
        if routing is None or layer is None or gate is None or hook not in routing.config.hooks:
            return None
        acting = layer.mixing[routing.config.hooks.index(hook)]
        strength = routing.strength(gate, layer, trunk, self._positions)
        mixed, self.carried, metrics = routing.mix(
            self.carried, trunk, update, acting, strength, self._valid
        )
        if metrics is not None:
            self.measured.append(metrics)
        return mixed

    def remember(self, trunk: Float[Array, "batch seq embed"]) -> None:
        """Show the trunk after the block to the streams that remember it."""
        if self._routing is not None:
            self.carried = streams.remember(self._routing.config.streams, self.carried, trunk)

    def metrics(self) -> StreamMetrics | None:
        """Return the stream metrics with a leading ``hooks`` axis, or ``None``."""
        if not self.measured:
            return None
        return jax.tree.map(lambda *hooks: jnp.stack(hooks), *self.measured)
