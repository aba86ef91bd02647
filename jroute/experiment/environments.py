"""Gymnasium environments of data, or of the splits of a run folder."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

import numpy as np

from jroute.controller.features import Featurizer
from jroute.envs.data import EnvData
from jroute.envs.gymnasium import RoutingEnv, RoutingVectorEnv
from jroute.experiment.feature_store import FeatureStore
from jroute.experiment.run import Run, load_run
from jroute.experiment.task_data import TaskData
from jroute.outcomes.backends import OutcomeBackend
from jroute.outcomes.grid import GateGrid
from jroute.tasks import Split
from jroute.utils.errors import UserError
from jroute.utils.inputs import check_kind

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
    return environment_of(
        split,
        opened.data,
        opened.features,
        opened.controllers.featurizer,
        opened.grid,
        opened.outcomes.backend(live=live),
    )


def environment_of(
    split: Split,
    data: TaskData,
    features: FeatureStore,
    featurizer: Featurizer,
    grid: GateGrid,
    backend: OutcomeBackend,
) -> EnvData:
    """Return a split as environments take it.

    Args:
        split: The split of the problems.
        data: Problems and prompts.
        features: Raw features of the prompts.
        featurizer: The fitted part of the features.
        grid: The grid of gates.
        backend: Looks outcomes up, or generates them.
    """
    return EnvData(
        problems=data.problems(split),
        prompts=data.prompts(split),
        observations=featurizer(features.raw(split)).astype(np.float32),
        feature_names=featurizer.names,
        gates=grid.values,
        backend=backend,
        num_gate_dims=grid.num_gate_dims,
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
    check_kind(live, bool, "live")
    return lambda split: environment_data(opened, cast(Split, split), live=live)
