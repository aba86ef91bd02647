"""Generation: fixed decoding, the cache, the engine that completes prompts, and scoring."""

from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Completion, Decoding
from jroute.generate.engine import Engine
from jroute.generate.requests import FrozenModel, Request

__all__ = ["Completion", "Decoding", "Engine", "EngineConfig", "FrozenModel", "Request"]
