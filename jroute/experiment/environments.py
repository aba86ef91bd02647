"""Gymnasium environments of data, or of the splits of a run folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np

from jroute.controller.features import Featurizer
from jroute.envs.data import EnvData
from jroute.envs.gymnasium import RoutingEnv, RoutingVectorEnv
from jroute.experiment.run import Run, load_run
from jroute.tasks import Split
from jroute.utils.errors import UserError

Data = EnvData | Mapping[str, EnvData]


def make_env(
    data: Data | None = None,
    *,
    run: str | Path | None = None,
    split: str = "test",
    live: bool = False,
) -> RoutingEnv:
    """Make an environment of one prompt from data or from a run folder.

    Args:
        data: One split, or splits by name.
        run: A run folder, whose splits are read when they are first needed.
        split: The split to draw problems from.
        live: Whether a run's outcomes are generated; otherwise they are looked up.

    Raises:
        UserError: Not exactly one of ``data`` and ``run`` is given, or there is no such split.
    """
    return RoutingEnv(_source(data, run, live), split=split)


def make_vector_env(
    num_envs: int = 1,
    data: Data | None = None,
    *,
    run: str | Path | None = None,
    split: str = "test",
    live: bool = False,
) -> RoutingVectorEnv:
    """Make an environment of a batch of ``num_envs`` prompts; see ``make_env``."""
    return RoutingVectorEnv(num_envs, _source(data, run, live), split=split)


def environment_data(run: str | Path | Run, split: Split, *, live: bool = False) -> EnvData:
    """Return a split of a run as the Gymnasium environments take it.

    Args:
        run: The run folder, or the opened run.
        split: The split of the problems.
        live: Whether outcomes are generated; otherwise the table or the memo must hold them.
    """
    opened = run if isinstance(run, Run) else load_run(run)
    return split_environment(opened, split, opened.controllers.featurizer, live=live)


def split_environment(run: Run, split: Split, featurizer: Featurizer, *, live: bool) -> EnvData:
    """Return a split as environments take it, with the features of a featurizer.

    Args:
        run: The run, whose controllers need not be trained yet.
        split: The split of the problems.
        featurizer: The fitted part of the features.
        live: Whether outcomes are generated.
    """
    return EnvData(
        problems=run.data.problems(split),
        prompts=run.data.prompts(split),
        observations=featurizer(run.features.raw(split)).astype(np.float32),
        feature_names=featurizer.names,
        gates=run.grid.values,
        backend=run.outcomes.backend(live=live),
        num_gate_dims=run.grid.num_gate_dims,
    )


def _source(
    data: Data | None, run: str | Path | None, live: bool
) -> Data | Callable[[str], EnvData]:
    """Return the data, or a loader of the run's splits."""
    if data is not None and run is None:
        return data
    if run is None or data is not None:
        raise UserError(
            "make a routing environment either from data=EnvData(...) or from run='<run folder>'; "
            "give exactly one"
        )
    opened = load_run(run)
    return lambda split: environment_data(opened, cast(Split, split), live=live)
