"""PPO for episodes of one step: see a prompt, choose a gate, get a reward.

Everything is a pure function of a configuration, a state and arrays. ``init`` draws a state,
``rollout.rollout`` plays a batch of episodes, ``update`` learns from it, and ``train`` alternates
the two inside one ``lax.scan``. ``compile_train`` and its siblings make programs of them, for one
seed or for many. All of them map over seeds and over ``Hyperparameters`` with ``vmap``.

Where a program cannot compute the rewards, ``decide`` chooses the gates, the caller obtains their
rewards, and ``update`` continues from there. Randomness is folded from the state's key and its
update number, so a state that is saved and restored continues exactly as it would have, either
way.
"""

from jroute.ppo.compilation import compile_decide, compile_train, compile_update
from jroute.ppo.config import Hyperparameters, PPOConfig
from jroute.ppo.learner import init, init_seeds, train, update
from jroute.ppo.rollout import add_rewards, decide
from jroute.ppo.types import Batch, Decisions, LearnerState

__all__ = [
    "Batch",
    "Decisions",
    "Hyperparameters",
    "LearnerState",
    "PPOConfig",
    "add_rewards",
    "compile_decide",
    "compile_train",
    "compile_update",
    "decide",
    "init",
    "init_seeds",
    "train",
    "update",
]
