"""Training curves: for TensorBoard under CleanRL's names, and seed by seed for the report.

==============================  ==========================================================
``events.out.tfevents.*``       means over seeds as scalars, the gate histogram (TensorBoard)
``seeds/<first update>.npz``    every curve of every seed, ``[seeds, updates]`` by name
==============================  ==========================================================
"""

import json
import logging
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jroute.utils.errors import UserError
from jroute.utils.files import atomic_write, write_text

LOG = logging.getLogger("jroute")

Track = Literal["", "wandb"]

GATE_SHARE = "charts/gate_frac_"
"""Curves so named, one for each gate, are also written as the histogram ``charts/gate``."""


def check_tracker(track: Track) -> None:
    """Refuses a tracker that is not installed, before hours are spent.

    Raises:
        UserError: It is not.
    """
    found = find_spec(track) if track else None
    if track and (found is None or found.origin is None):  # a folder of that name is no package
        raise UserError(
            f"--track {track} needs a package that is missing; pip install 'jroute[{track}]'"
        )


class Scalars:
    """Writes curves into a run's ``tensorboard`` folder, and to Weights & Biases if asked to.

    Values with a leading axis of seeds are written as their mean over the seeds that have one: an
    explained variance does not exist where all rewards were the same.
    """

    def __init__(
        self,
        folder: Path,
        *,
        purge_step: int | None = None,
        track: Track = "",
        config: Mapping[str, Any] | None = None,
    ):
        """Open the folder; curves from ``purge_step`` on are written anew after a resume.

        Args:
            folder: Where curves go.
            purge_step: First step that is still to come.
            track: ``wandb`` writes the same scalars and histograms to Weights & Biases as well;
                where to and under which key is W&B's own configuration (``WANDB_MODE=offline``
                sends nothing).
            config: Shown beside the curves by a tracker.

        Raises:
            UserError: The tracker is not installed.
        """
        from tensorboardX import SummaryWriter

        check_tracker(track)
        self._tracked = _WandB(folder, config or {}) if track else None
        self._writer = SummaryWriter(str(folder), purge_step=purge_step, write_to_disk=True)
        self._seeds = folder / "seeds"
        self._seeds.mkdir(parents=True, exist_ok=True)
        for chunk in self._seeds.glob("*.npz"):
            if int(chunk.stem) >= (purge_step or 0):
                chunk.unlink()

    def write(self, named: Mapping[str, np.ndarray], first_step: int) -> None:
        """Write ``[seeds, updates]`` arrays; update i stands at step ``first_step + i``."""
        by_seed = {name: np.atleast_2d(values) for name, values in named.items()}
        with (
            atomic_write(self._seeds / f"{first_step:08d}.npz") as partial,
            partial.open("wb") as out,
        ):
            rounded: dict[str, Any] = {k: v.astype(np.float32) for k, v in by_seed.items()}
            np.savez_compressed(out, **rounded)
        means = {name: np.ma.masked_invalid(v).mean(axis=0) for name, v in by_seed.items()}
        shares = {
            float(name.removeprefix(GATE_SHARE)): values
            for name, values in means.items()
            if name.startswith(GATE_SHARE)
        }
        for i in range(max(map(len, means.values()), default=0)):
            step = first_step + i
            seen = {
                name: float(values[i])
                for name, values in means.items()
                if not np.ma.getmaskarray(values)[i]
            }
            for name, value in seen.items():
                self._writer.add_scalar(name, value, step)
            bars = _bars({gate: float(values[i]) for gate, values in shares.items()})
            if bars:
                self._histogram(*bars, step)
            if self._tracked is not None:
                self._tracked(seen, bars, step)

    def _histogram(self, limits: list[float], shares: list[float], step: int) -> None:
        """Shares of every gate as a histogram whose bars are as wide as the grid is."""
        middles = (np.array(limits[:-1]) + np.array(limits[1:])) / 2
        self._writer.add_histogram_raw(
            "charts/gate",
            min=limits[0],
            max=limits[-1],
            num=1.0,
            sum=float(np.dot(shares, middles)),
            sum_squares=float(np.dot(shares, middles**2)),
            bucket_limits=limits[1:],
            bucket_counts=shares,
            global_step=step,
        )

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()
        if self._tracked is not None:
            self._tracked.close()


def _bars(shares: Mapping[float, float]) -> tuple[list[float], list[float]] | None:
    """Edges and heights of a histogram with one bar around every gate."""
    gates = np.array(sorted(shares))
    if len(gates) < 2:
        return None
    inner = (gates[:-1] + gates[1:]) / 2
    edges = [gates[0] - (inner[0] - gates[0]), *inner, gates[-1] + (gates[-1] - inner[-1])]
    return [float(edge) for edge in edges], [shares[gate] for gate in gates.tolist()]


class _WandB:
    """A Weights & Biases run of a folder; a run that is resumed goes on in it.

    Whatever fails is told once; the training goes on without.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        self._run: Any = None
        self._try(lambda: self._open(folder, config))

    def _open(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        known = folder / "wandb.json"
        identity = json.loads(known.read_text())["id"] if known.is_file() else None
        folder.mkdir(parents=True, exist_ok=True)
        self._histogram = wandb.Histogram
        self._run = wandb.init(
            project="jroute",
            name=folder.absolute().parent.name,
            dir=str(folder),
            config=dict(config),
            id=identity,
            resume="allow",
        )
        write_text(known, json.dumps({"id": self._run.id}) + "\n")

    def __call__(
        self,
        values: Mapping[str, float],
        bars: tuple[list[float], list[float]] | None,
        step: int,
    ) -> None:
        if self._run is None:
            return
        shown: dict[str, Any] = dict(values)
        if bars:
            limits, shares = bars
            shown["charts/gate"] = self._histogram(
                np_histogram=(np.array(shares), np.array(limits))
            )
        self._try(lambda: self._run.log(shown, step=step))

    def close(self) -> None:
        """End the run."""
        if self._run is not None:
            self._try(self._run.finish)

    def _try(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except Exception as error:
            self._run = None
            reason = str(error).strip().splitlines() or [type(error).__name__]
            LOG.warning("W&B takes no more curves (%s); the run goes on", reason[0])


def read_curves(folder: Path) -> tuple[dict[str, Float[np.ndarray, "seeds updates"]], bool]:
    """Curves of a run, and whether they are known seed by seed.

    A folder without ``seeds`` (an older run's) gives the means that TensorBoard has, as one row;
    one without anything gives nothing.
    """
    chunks = sorted((folder / "seeds").glob("*.npz"))
    if not chunks:
        means = {name: np.array([row]) for name, row in _read_events(folder).items()}
        return means, False
    parts: list[dict[str, np.ndarray]] = []
    for chunk in chunks:
        with np.load(chunk) as stored:
            parts.append({name: stored[name].astype(np.float64) for name in stored.files})
    names = set(parts[0]).intersection(*parts[1:])
    joined = {}
    for name in sorted(names):
        seeds = max(len(part[name]) for part in parts)
        spread = [np.broadcast_to(p[name], (seeds, p[name].shape[1])) for p in parts]
        joined[name] = np.concatenate(spread, axis=1)
    return joined, max(len(values) for values in joined.values()) > 1


def _read_events(folder: Path) -> dict[str, list[float]]:
    """Scalars of TensorBoard's files, the last value of every step, NaN where there is none."""
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

    found: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = memoryview(path.read_bytes()), 0
        while at + 12 <= len(data):  # length, checksum, event, checksum
            size = int.from_bytes(data[at : at + 8], "little")
            if at + 16 + size > len(data):
                break  # a killed run's last event
            event = Event.FromString(bytes(data[at + 12 : at + 12 + size]))
            at += 16 + size
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    found.setdefault(value.tag, {})[event.step] = value.simple_value
    length = 1 + max((max(steps) for steps in found.values()), default=-1)
    return {
        name: [steps.get(step, float("nan")) for step in range(length)]
        for name, steps in found.items()
    }
