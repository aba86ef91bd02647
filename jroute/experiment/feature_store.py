"""The features of a run's prompts, kept in the run folder."""

import io
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jroute.controller.features import SCALARS, FeatureConfig, RawFeatures, raw_features
from jroute.distributed.processes import is_first_process
from jroute.experiment.run_folder import RunFolder
from jroute.experiment.task_data import TaskData
from jroute.generate.finite import rows_named
from jroute.lm import LanguageModel
from jroute.observe.progress import progress_bar
from jroute.tasks import Split
from jroute.utils.disk import make_folder
from jroute.utils.errors import UserError
from jroute.utils.files import write_bytes
from jroute.utils.fingerprint import semantic_fingerprint
from jroute.utils.keys import stored, stored_keys
from jroute.utils.npz_files import read_arrays

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """Raw features of prompts: computed once per split and stored by what determines them.

    Attributes:
        config: Which features.
        folder: The run folder.
        lm: The gated model, of which one plain prefill is read.
        data: Problems and prompts.
        cells: What determines the meaning of a cell; part of the features' fingerprint.
        slots: Prompts in one batch.
    """

    config: FeatureConfig
    folder: RunFolder
    lm: LanguageModel
    data: TaskData
    cells: dict[str, Any]
    slots: int

    def raw(self, split: Split) -> RawFeatures:
        """Return the raw features of a split, computing them if they are not stored.

        Raises:
            NotFiniteError: The features of a problem are not finite.
        """
        prompts = self.data.prompts(split)
        description = {"cells": self.cells, "features": self.config, "prompts": prompts}
        file = self.folder.features(split, semantic_fingerprint(description))
        if os.path.lexists(file):
            try:
                return read_features(file, "its features are computed again")
            except UserError as error:
                logger.warning("%s", error)
        problems = self.data.problems(split)
        with (
            rows_named(lambda row: f"problem {problems[row].id} of {split}"),
            progress_bar(
                total=len(prompts),
                desc=f"features {split}",
                unit="prompt",
                disable=not is_first_process(),
            ) as bar,
        ):
            raw = self.read(prompts, progress=bar.update)
        content = io.BytesIO()
        np.savez(content, **stored(raw))
        make_folder(file.parent)
        write_bytes(file, content.getvalue())
        return raw

    def read(
        self, prompts: Sequence[str], *, progress: Callable[[int], object] = lambda rows: None
    ) -> RawFeatures:
        """Compute the raw features of any prompts by one prefill of the plain model.

        Args:
            prompts: Texts as the model reads them.
            progress: Called after every batch with the number of its prompts.
        """
        lm = self.lm
        with lm.devices():
            return raw_features(
                lm.params,
                lm.config,
                [lm.encode(prompt) for prompt in prompts],
                self.config,
                slots=self.slots,
                routing=lm.routing,
                texts=prompts,
                progress=progress,
            )


def read_features(file: Path, remedy: str) -> RawFeatures:
    """Read a file of features.

    Args:
        file: The file. Those of the first versions have no names; their scalars are ``SCALARS``.
        remedy: What the user should do if it is missing or damaged.

    Raises:
        UserError: The file is missing or damaged, or holds something else.
    """
    arrays = read_arrays(file, remedy)
    key = stored_keys(RawFeatures)
    scalars, hidden = arrays.get(key["scalars"]), arrays.get(key["hidden"])
    names = tuple(map(str, arrays.get(key["names"], np.array(SCALARS)).reshape(-1)))
    tables = [array for array in (scalars, hidden) if array is not None and array.ndim == 2]
    if (
        [str(array.dtype) for array in tables] != ["float32"] * 2
        or len(tables[0]) != len(tables[1])
        or tables[0].shape[1] != len(names)
    ):
        raise UserError(f"{file} does not hold the features of prompts; {remedy}")
    return RawFeatures(tables[0], tables[1], names)
