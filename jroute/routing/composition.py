"""C(g): what a gate does, as weights of earlier updates.

With frozen blocks every linear stream scheme only weighs earlier updates anew: what attention or
the MLP of block ``j`` reads is ``sum_i C[j, i] D_i`` over the sources ``D``: the embedding, then
the updates of attention and MLP block by block. The plain model has ``C = 1`` for all earlier ones.
With norm matching, caps and exemptions the weights depend on the token; they follow from the
coefficients that ``forward(..., metrics=True)`` measured, and from gate and M alone without guards.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jroute.routing import streams
from jroute.routing.config import Hook, RoutingConfig
from jroute.routing.mixing import Routing


class Composition(NamedTuple):
    """Weights of all sources in everything that is read, token by token.

    Attributes:
        attention: In the input of every block's attention.
        mlp: In the input of every block's MLP.
        final: In the input of the final norm.
    """

    attention: Float[Array, "layers batch seq sources"]
    mlp: Float[Array, "layers batch seq sources"]
    final: Float[Array, "batch seq sources"]


def source_names(layers: int) -> list[str]:
    """Names of the sources, in order."""
    return ["x0", *(f"{part}{layer}" for layer in range(layers) for part in "am")]


def composition(
    config: RoutingConfig, coefficients: Float[Array, "layers hooks batch seq n n"]
) -> Composition:
    """Follows the sources through the streams.

    Args:
        config: Streams, hooks and injection.
        coefficients: What every stream after mixing held of every stream before it (see
            ``StreamMetrics``), or ``closed_form_coefficients``.
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
        held = coefficients[layer, config.hooks.index(name)]
        reads = jnp.stack([trunk, *side])
        mixed = jnp.einsum("bsij,jbsx->ibsx", held, reads)
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
    """Coefficients ``I + g (M - I)`` from gate and M alone: exact where guards are off."""
    change = routing.config.acting(routing.mixing)
    identity = jnp.broadcast_to(jnp.eye(change.shape[-1]), change.shape)
    strength = jnp.asarray(gate).T[:, None, :, None, None, None]
    return identity[:, :, None, None] + strength * change[:, :, None, None]
