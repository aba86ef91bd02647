"""Routing as environments: pure functions over tables, and Gymnasium's classes.

Importing the package registers ``jroute/Routing-v0`` with Gymnasium.
"""

from jroute.envs.data import EnvData
from jroute.envs.functional import LiveEnv, TableEnv
from jroute.envs.gymnasium import RoutingEnv, RoutingVectorEnv, register_environments

__all__ = ["EnvData", "LiveEnv", "RoutingEnv", "RoutingVectorEnv", "TableEnv"]

register_environments()
