"""How a controller is trained: the shape of the program, and the numbers it takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jroute.utils.errors import UserError
from jroute.utils.keys import Keys, keys
from jroute.utils.ranges import Range, check_ranges, whole

RANGES = {
    **dict.fromkeys(("updates", "batch_size", "epochs", "minibatches", "seeds"), whole(1)),
    "learning_rate": Range(0.0, 1.0, above=True),
    "adam_eps": Range(0.0, 1.0, above=True),
    **dict.fromkeys(("max_grad_norm", "clip_coef", "adv_std_floor"), Range(0.0, above=True)),
    **dict.fromkeys(("vf_coef", "ent_coef"), Range(0.0)),
    **dict.fromkeys(("gamma", "gae_lambda"), Range(0.0, 1.0)),
    "hidden": whole(1, 2**16),
}


@dataclass(frozen=True)
class PPOConfig:
    """How a controller is trained. The defaults are CleanRL's, except for one-step episodes.

    Attributes:
        updates: Number of updates of a whole training; the learning rate is annealed over them.
        batch_size: Episodes (prompts) per update.
        epochs: Passes over the batch per update.
        minibatches: Minibatches per pass; must divide ``batch_size``.
        learning_rate: Adam's step size at the first update.
        anneal_lr: Whether the step size falls linearly, to ``learning_rate / updates`` at the
            last update.
        adam_eps: Adam's epsilon.
        max_grad_norm: Limit on the global norm of a gradient.
        clip_coef: How far the ratio of new to old probability may move from 1.
        clip_vloss: Whether value changes are clipped too, by ``clip_coef`` in units of reward.
        vf_coef: Weight of the value loss.
        ent_coef: Weight of the entropy bonus.
        norm_adv: Whether advantages are normalised over the whole batch.
        adv_std_floor: Lower bound on the standard deviation that normalises advantages, in units
            of reward.
        gamma: Discount; has no effect in one-step episodes.
        gae_lambda: GAE's weight of longer look-ahead; has no effect in one-step episodes.
        hidden: Widths of the tanh layers of the actor and of the critic.
        seeds: Number of controllers to train side by side.
    """

    stored_keys: ClassVar[Keys] = keys(
        "updates",
        "batch_size",
        "epochs",
        "minibatches",
        "learning_rate",
        "anneal_lr",
        "adam_eps",
        "max_grad_norm",
        "clip_coef",
        "clip_vloss",
        "vf_coef",
        "ent_coef",
        "norm_adv",
        "adv_std_floor",
        "gamma",
        "gae_lambda",
        "hidden",
        "seeds",
    )

    updates: int = 300
    batch_size: int = 512
    epochs: int = 4
    minibatches: int = 4
    learning_rate: float = 3e-3
    anneal_lr: bool = True
    adam_eps: float = 1e-5
    max_grad_norm: float = 0.5
    clip_coef: float = 0.2
    clip_vloss: bool = False
    vf_coef: float = 0.5
    ent_coef: float = 0.01
    norm_adv: bool = True
    adv_std_floor: float = 0.05
    gamma: float = 0.99
    gae_lambda: float = 0.95
    hidden: tuple[int, ...] = (64, 64)
    seeds: int = 20

    def __post_init__(self) -> None:
        """Refuse numbers that training cannot use."""
        check_ranges("ppo", self, RANGES)
        if self.batch_size % self.minibatches:
            raise UserError(
                f"ppo.batch_size {self.batch_size} cannot be cut into {self.minibatches} equal "
                "minibatches; choose ppo.minibatches to divide it"
            )


class Hyperparameters(NamedTuple):
    """The numbers of a ``PPOConfig`` that are arguments of a compiled training.

    Changing one does not recompile, and ``vmap`` maps over them as over seeds.
    """

    learning_rate: Float[Array, "..."]
    adam_eps: Float[Array, "..."]
    max_grad_norm: Float[Array, "..."]
    clip_coef: Float[Array, "..."]
    vf_coef: Float[Array, "..."]
    ent_coef: Float[Array, "..."]
    adv_std_floor: Float[Array, "..."]
    gamma: Float[Array, "..."]
    gae_lambda: Float[Array, "..."]

    @classmethod
    def of(cls, config: PPOConfig) -> "Hyperparameters":
        """Take the numbers of one configuration."""
        return cls(*(jnp.float32(getattr(config, name)) for name in cls._fields))

    @classmethod
    def stack(cls, configs: Sequence[PPOConfig]) -> "Hyperparameters":
        """Stack the numbers of several configurations on a leading axis.

        Raises:
            UserError: There are no configurations, or they differ in more than these numbers.
        """
        if not configs:
            raise UserError("a sweep needs at least one PPO configuration")
        for i, config in enumerate(configs):
            if replace(config, **{n: getattr(configs[0], n) for n in cls._fields}) != configs[0]:
                raise UserError(
                    f"PPO configuration {i} of the sweep differs from the first in more than "
                    f"{', '.join(cls._fields)}; train it separately"
                )
        values = ([getattr(config, name) for config in configs] for name in cls._fields)
        return cls(*(jnp.asarray(np.array(column, np.float32)) for column in values))
