"""The learner as compiled programs, for one seed or for many."""

from collections.abc import Callable

import jax
from jax.sharding import NamedSharding

from jroute.ppo import learner, rollout, seeds
from jroute.ppo.config import Hyperparameters, PPOConfig
from jroute.ppo.metrics import Metrics
from jroute.ppo.sharding import with_replicated_arguments
from jroute.ppo.types import Batch, Decisions, Environment, LearnerState, Prompts


def compile_train(
    config: PPOConfig,
    num_updates: int,
    *,
    sharding: NamedSharding | None = None,
    together: bool | None = None,
) -> Callable[..., tuple[LearnerState, Metrics]]:
    """Make one program of ``learner.train``.

    The program donates the memory of the state it is given: use the state that it returns. A state
    may have leading axes, ``[seeds]`` as ``init_seeds`` makes them or several such as
    ``[trials, seeds]``; one call trains all of it. ``hyper`` replaces the configuration's numbers,
    either for the whole state or with one value for each place of the first leading axes.

    Args:
        config: The learner's configuration.
        num_updates: Updates per call.
        sharding: Over a mesh whose axes are automatic, as ``Mesh`` makes them: parameters are
            copied to every device and batches are spread over the devices.
        together: Whether all seeds are one batch. By default they are, except that on CPUs they
            take turns on every core.

    Returns:
        ``(env, state, hyper=None) -> (state, metrics)``; metrics are ``[..., num_updates]``.
    """

    def run(
        env: Environment, state: LearnerState, hyper: Hyperparameters
    ) -> tuple[LearnerState, Metrics]:
        def train(state: LearnerState, hyper: Hyperparameters) -> tuple[LearnerState, Metrics]:
            return learner.train(config, env, state, num_updates, hyper=hyper, sharding=sharding)

        return seeds.map_seeds(train, together, state, hyper)

    jitted = jax.jit(run, donate_argnums=1, compiler_options=seeds.compiler_options())
    single = with_replicated_arguments(jitted, sharding)
    spread = seeds.spread_over_cores(jitted)
    spread_seeds = sharding is None and together is None and seeds.take_turns()
    defaults = Hyperparameters.of(config)

    def call(
        env: Environment, state: LearnerState, hyper: Hyperparameters | None = None
    ) -> tuple[LearnerState, Metrics]:
        program = spread if spread_seeds and state.update.ndim > 0 else single
        return program(env, state, defaults if hyper is None else hyper)

    return call


def compile_decide(
    config: PPOConfig, *, sharding: NamedSharding | None = None
) -> Callable[[Prompts, LearnerState], Decisions]:
    """Make one program ``(prompts, state) -> decisions`` of ``rollout.decide``."""
    defaults = Hyperparameters.of(config)

    def run(prompts: Prompts, state: LearnerState) -> Decisions:
        def decide(state: LearnerState, _: Hyperparameters) -> Decisions:
            return rollout.decide(config, prompts, state, sharding=sharding)

        return seeds.map_seeds(decide, None, state, defaults)

    jitted = jax.jit(run, compiler_options=seeds.compiler_options())
    return with_replicated_arguments(jitted, sharding)


def compile_update(
    config: PPOConfig, *, sharding: NamedSharding | None = None
) -> Callable[..., tuple[LearnerState, Metrics]]:
    """Make one program of ``learner.update``, for rewards computed outside of programs.

    The loop is ``decisions = decide(prompts, state)``, obtaining the rewards of
    ``decisions.choices``, and ``state, metrics = update(state, add_rewards(decisions, rewards))``.
    The program donates the state's memory. A batch has the leading axes of the state.

    Returns:
        ``(state, batch, hyper=None) -> (state, metrics)``.
    """

    def run(
        state: LearnerState, batch: Batch, hyper: Hyperparameters
    ) -> tuple[LearnerState, Metrics]:
        def update(
            state: LearnerState, hyper: Hyperparameters, batch: Batch
        ) -> tuple[LearnerState, Metrics]:
            return learner.update(config, state, batch, hyper=hyper, sharding=sharding)

        return seeds.map_seeds(update, None, state, hyper, batch)

    jitted = jax.jit(run, donate_argnums=0, compiler_options=seeds.compiler_options())
    program = with_replicated_arguments(jitted, sharding)
    defaults = Hyperparameters.of(config)

    def call(
        state: LearnerState, batch: Batch, hyper: Hyperparameters | None = None
    ) -> tuple[LearnerState, Metrics]:
        return program(state, batch, defaults if hyper is None else hyper)

    return call
