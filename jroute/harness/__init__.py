"""The adapter of lm-evaluation-harness; importing this package registers the model ``jroute``."""

from jroute.harness.model import JaxLM

__all__ = ["JaxLM"]
