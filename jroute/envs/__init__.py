"""Routing as environments: pure functions over tables, and Gymnasium's classes."""

from jroute.envs.data import EnvData
from jroute.envs.functional import LiveEnv, TableEnv
from jroute.envs.gymnasium import RoutingEnv, RoutingVectorEnv

__all__ = ["EnvData", "LiveEnv", "RoutingEnv", "RoutingVectorEnv", "TableEnv"]
