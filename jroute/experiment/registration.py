"""Registration of the Gymnasium environments, light enough for ``import jroute``.

Gymnasium has loaded no plugins since 1.0: ids exist once the module that registers them has been
imported, which ``gymnasium.make("jroute:jroute/Routing-v0")`` does by itself.
"""

from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register, registry

if TYPE_CHECKING:
    from jroute.envs.gymnasium import RoutingEnv, RoutingVectorEnv

ROUTING_ID = "jroute/Routing-v0"


def register_environments() -> None:
    """Register the id with ``gymnasium.make`` and ``gymnasium.make_vec``; harmless if repeated."""
    if ROUTING_ID not in registry:
        # Names of functions, since a spec that holds the functions could not become JSON.
        register(
            id=ROUTING_ID,
            entry_point=f"{__name__}:{make_env.__name__}",
            vector_entry_point=f"{__name__}:{make_vector_env.__name__}",
        )


def make_env(**options: Any) -> "RoutingEnv":
    """Make an environment of one prompt; JAX is imported now, not when the id is registered."""
    from jroute.experiment import environments

    return environments.make_env(**options)


def make_vector_env(**options: Any) -> "RoutingVectorEnv":
    """Make an environment of a batch of prompts."""
    from jroute.experiment import environments

    return environments.make_vector_env(**options)
