"""The pipeline of a run: mixing weights, outcomes, features, controllers, judging; each resumes."""

import logging
from typing import Any

from jroute.experiment import judging
from jroute.experiment.run import Run
from jroute.experiment.task_data import TaskData
from jroute.experiment.training import train_controllers
from jroute.lm import LanguageModel
from jroute.outcomes.grid import GateGrid
from jroute.probe import effects
from jroute.tasks import Split
from jroute.utils.errors import UserError

logger = logging.getLogger(__name__)

PROBED_PROMPTS = 8
"""Train prompts on which a routing must show an effect."""


def train(run: Run) -> dict[str, Any]:
    """Carry out a whole run: mixing weights, outcomes of every split, controllers, judging.

    No other process trains or judges in the run folder meanwhile. With live rollouts no table is
    filled: cells are generated as they are needed.

    Returns:
        The results.

    Raises:
        UserError: The routing is inert; another process has the run folder.
    """
    learns = run.mixing.enabled
    if not learns:  # what is refused leaves nothing behind
        _check_effect(run)
    with run.owned():
        run.keep()
        if learns:
            run.mixing.learn()
            _check_effect(run)
        if run.experiment.rollouts == "table":
            fill_outcomes(run)
        train_controllers(run)
        return judging.judge(run)


def _check_effect(run: Run) -> None:
    if not run.experiment.allow_inert:
        refuse_inert(run.lm, run.data, run.grid)


def fill_outcomes(run: Run, *splits: Split) -> None:
    """Generate the cells that the table lacks.

    Args:
        run: The run whose table is filled.
        *splits: Splits of the problems; by default all that the experiment uses.
    """
    run.mixing.learn()
    for split in splits or run.experiment.splits:
        cells = run.outcomes.cells(split)
        count = run.generator.fill(run.outcomes.table, cells, f"outcomes {split}")
        logger.info("outcomes of %s: %d cells, %d made now", split, len(cells), count)


def inert_reason(lm: LanguageModel, data: TaskData, grid: GateGrid) -> str:
    """Return why nothing can be learned from gates; empty if any gate has an effect.

    A routing is inert if on ``PROBED_PROMPTS`` train prompts all gates leave the distribution of
    the next token as it was.

    Args:
        lm: The gated model.
        data: Problems and prompts.
        grid: The grid of gates.
    """
    prompts = data.tokens("train", PROBED_PROMPTS)
    logger.info("checking whether any gate changes the model, on %d train prompts", len(prompts))
    with lm.devices():
        divergences = effects.divergence(
            lm.params, lm.config, lm.routing, prompts, [gate for gate in grid.values if gate]
        )
    largest = effects.furthest(divergences)
    if effects.verdict(largest.kl) != "inert":
        return ""
    return (
        f"this routing is inert: no gate moves the next-token distribution by more than "
        f"{largest.kl:.1e} nats (mean KL on {len(prompts)} train prompts, at gate "
        f"{largest.gate:g}), below the floor of {effects.INERT_BELOW:g}, so there is "
        "nothing to learn"
    )


def refuse_inert(lm: LanguageModel, data: TaskData, grid: GateGrid) -> None:
    """Refuse to train where no gate of the grid does anything; see ``inert_reason``.

    Raises:
        UserError: The routing is inert.
    """
    if reason := inert_reason(lm, data, grid):
        raise UserError(
            f"{reason}; choose another routing or larger gates with the help of python -m "
            "jroute.probe, or force it with --allow_inert true"
        )
