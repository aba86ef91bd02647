"""jroute: a laboratory for RL-controlled routing inside language models.

>>> import jroute
>>> lm = jroute.load("runs/demo/model", routing="histories")
>>> lm.logits(token_ids, gate=0.5)                      # [batch, seq, vocab]
>>> lm.generate(["2 + 2 = "], gate=[0.25])[0].text
>>> run = jroute.load_run("runs/demo")
>>> run.generate(prompts, arm="rl")
>>> run.explain(prompts[0])

Importing the package registers ``jroute/Routing-v0`` with Gymnasium.
"""

import os
from typing import TYPE_CHECKING, Any

from jroute.experiment.registration import register_environments
from jroute.utils.errors import UserError

if TYPE_CHECKING:
    from jroute.experiment.run import Run, load_run
    from jroute.lm import LanguageModel, load

__all__ = ["LanguageModel", "Run", "UserError", "load", "load_run"]
__version__ = "0.1.0"

# transformers would say that torch is missing; its models are not used here.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

register_environments()


def __getattr__(name: str) -> Any:
    """Import the public names on first use, so that small commands start fast."""
    if name in ("LanguageModel", "load"):
        from jroute import lm as module
    elif name in ("Run", "load_run"):
        from jroute.experiment import run as module
    else:
        raise AttributeError(f"module 'jroute' has no attribute {name!r}")
    return getattr(module, name)
