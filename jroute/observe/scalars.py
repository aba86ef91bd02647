"""Training curves for TensorBoard, under CleanRL's names."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX import SummaryWriter


class Scalars:
    """Writes scalars into a run's ``tensorboard`` folder.

    Values with a leading axis of seeds are written as their mean over the seeds that have one: an
    explained variance does not exist where all rewards were the same.
    """

    def __init__(self, folder: Path, *, purge_step: int | None = None):
        """Opens the folder; curves from ``purge_step`` on are written anew after a resume."""
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, write_to_disk=True)

    def write(self, named: Mapping[str, np.ndarray], first_step: int) -> None:
        """Writes ``[seeds, updates]`` arrays; update i stands at step ``first_step + i``."""
        for name, values in named.items():
            values = np.ma.masked_invalid(np.atleast_2d(values)).mean(axis=0)
            for i in np.flatnonzero(~np.ma.getmaskarray(values)):
                self._writer.add_scalar(name, float(values[i]), first_step + int(i))

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()
