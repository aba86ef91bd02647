"""C(g): the effect of a gate, as weights of earlier updates.

With frozen blocks every linear stream scheme only reweights earlier updates: the input of attention
or of the MLP in block ``j`` is ``sum_i C[j, i] D_i`` over the sources ``D``: the embedding, then
the updates of attention and MLP, block by block. The plain model has ``C = 1`` for all earlier
sources. With norm matching, caps, and exemptions the weights depend on the token and follow from
the coefficients in ``StreamMetrics``; without guards they follow from gate and M alone.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jroute.routing import streams
from jroute.routing.config import Hook, RoutingConfig
from jroute.routing.mixing import Routing


class Composition(NamedTuple):
    """Weights of all sources in every input, token by token.

    Attributes:
        attention: Weights in the input of every block's attention.
        mlp: Weights in the input of every block's MLP.
        final: Weights in the input of the final norm.
    """

    attention: Float[Array, "layers batch seq sources"]
    mlp: Float[Array, "layers batch seq sources"]
    final: Float[Array, "batch seq sources"]


def source_names(layers: int) -> list[str]:
    """Return the names of the sources, in order."""
    return ["x0", *(f"{part}{layer}" for layer in range(layers) for part in "am")]


def composition(
    config: RoutingConfig, coefficients: Float[Array, "layers hooks batch seq n n"]
) -> Composition:
    """Follow the sources through the streams.

    Args:
        config: Streams, hooks, and injection.
        coefficients: Weight of every stream before mixing in every stream after it: measured (see
            ``StreamMetrics``), or from ``closed_form_coefficients``.
    """
    layers, _, batch, seq = coefficients.shape[:4]
    kinds, read_only = config.streams, config.injection == "read_only"
    unit = jnp.eye(1 + 2 * layers)

    def source(i: int) -> Array:
        return jnp.broadcast_to(unit[i], (batch, seq, unit.shape[0]))

    def mix(
        layer: int, name: Hook, carried: tuple[Array, ...], trunk: Array, update: Array
    ) -> tuple[Array | None, tuple[Array, ...]]:
        if name not in config.hooks:
            return None, carried
        side = streams.read(kinds, carried, trunk) if kinds else [update]
        weights = coefficients[layer, config.hooks.index(name)]
        reads = jnp.stack([trunk, *side])
        mixed = jnp.einsum("bsij,jbsx->ibsx", weights, reads)
        return mixed[0], streams.write(kinds, carried, list(mixed[1:])) if kinds else carried

    trunk = reader = source(0)
    carried = streams.start(kinds, trunk)
    attention, mlp = [], []
    for layer in range(layers):
        attended, fed = source(1 + 2 * layer), source(2 + 2 * layer)
        attention.append(reader)
        trunk, middle = trunk + attended, reader + attended
        carried = streams.receive(kinds, carried, "attention", attended, jnp.asarray(layer))
        mixed, carried = mix(layer, "attention", carried, trunk, attended)
        if mixed is not None:
            middle = mixed
            trunk = trunk if read_only else mixed
        mlp.append(middle)
        trunk = trunk + fed
        carried = streams.receive(kinds, carried, "mlp", fed, jnp.asarray(layer))
        reader = trunk
        ends: tuple[tuple[Hook, Array], ...] = (("mlp", fed), ("block", attended + fed))
        for name, update in ends:
            mixed, carried = mix(layer, name, carried, trunk, update)
            if mixed is not None:
                reader = mixed
                trunk = trunk if read_only else mixed
        carried = streams.remember(kinds, carried, trunk)
    return Composition(jnp.stack(attention), jnp.stack(mlp), reader)


def closed_form_coefficients(
    routing: Routing, gate: Float[np.ndarray, "batch layers"]
) -> Float[Array, "layers hooks batch 1 n n"]:
    """Return the coefficients ``I + g (M - I)`` of gate and M; exact if all guards are off."""
    change = routing.config.acting(routing.mixing)
    identity = jnp.broadcast_to(jnp.eye(change.shape[-1]), change.shape)
    strength = jnp.asarray(gate).T[:, None, :, None, None, None]
    return identity[:, :, None, None] + strength * change[:, :, None, None]
