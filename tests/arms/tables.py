"""Tables small enough to train on in a moment, with a planted rule, and what trains on them."""

import numpy as np

from jroute.arms.supervised import Cells, SupervisedConfig
from jroute.ppo.config import PPOConfig
from jroute.statistics.calibration import planted

PPO = PPOConfig(seeds=4, updates=40, batch_size=128, hidden=(16,), learning_rate=1e-2)
FIT = SupervisedConfig(
    hidden=(16,), steps=150, check_every=30, learning_rates=(1e-2,), weight_decays=(0.0,)
)


def planted_table(problems: int, seed: int) -> Cells:
    """A table on which the best rule gains 20 points."""
    return planted(0.2, problems, np.random.default_rng(seed), features=4)
