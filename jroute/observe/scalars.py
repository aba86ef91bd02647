"""Training curves: for TensorBoard under CleanRL's names, and of every seed for the report.

==============================  ==========================================================
``events.out.tfevents.*``       means over seeds as scalars, the gate histogram (TensorBoard)
``seeds/<first update>.npz``    every curve of every seed, ``[seeds, updates]`` by name
==============================  ==========================================================
"""

import io
import json
import logging
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from jroute.utils.disk import make_folder
from jroute.utils.errors import UserError
from jroute.utils.files import write_bytes, write_json
from jroute.utils.npz_files import read_arrays

LOG = logging.getLogger("jroute")

Track = Literal["", "wandb"]

GATE_SHARE = "charts/gate_frac_"
"""Prefix of the curves, one for each gate, that also become the histogram ``charts/gate``."""

MAX_GATE = 1e6
"""Largest gate in the name of a curve."""

MAX_UPDATES = 100_000
"""Updates of the longest training; a step beyond is damage."""


def check_tracker(track: Track) -> None:
    """Refuse a tracker that is not installed, before the training starts.

    Raises:
        UserError: The tracker is not installed.
    """
    spec = find_spec(track) if track else None
    if track and (spec is None or spec.origin is None):  # a folder of that name is not a package
        raise UserError(
            f"--track {track} needs a package that is missing; pip install 'jroute[{track}]'"
        )


class Scalars:
    """Write curves into a run's ``tensorboard`` folder and, on request, to Weights & Biases.

    TensorBoard gets means over the seeds that have a value: the explained variance does not exist
    where all rewards are equal.
    """

    def __init__(
        self,
        folder: Path,
        *,
        purge_step: int | None = None,
        track: Track = "",
        config: Mapping[str, Any] | None = None,
    ):
        """Open the folder and drop what it has from ``purge_step`` on, which a resume writes again.

        Args:
            folder: Where curves go.
            purge_step: The next step to write.
            track: ``wandb`` also writes the scalars and histograms to Weights & Biases, whose own
                configuration says where to and under which key (``WANDB_MODE=offline`` sends
                nothing).
            config: What a tracker shows beside the curves.

        Raises:
            UserError: The tracker is not installed.
        """
        from jroute.observe.event_file import EventFile

        check_tracker(track)
        self._seeds = folder / "seeds"
        make_folder(self._seeds)
        self._tracker = _WandB(folder, config or {}) if track else None
        self._events = EventFile(folder, purge_step)
        for chunk in self._seeds.glob("*.npz"):
            if int(chunk.stem) >= (purge_step or 0):
                chunk.unlink()

    def write(self, named: Mapping[str, np.ndarray], first_step: int) -> None:
        """Write ``[seeds, updates]`` arrays; update i is step ``first_step + i``.

        Raises:
            UserError: The system refuses to write.
        """
        from tensorboardX import summary
        from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

        by_seed = {name: np.atleast_2d(values) for name, values in named.items()}
        rounded: dict[str, Any] = {k: v.astype(np.float32) for k, v in by_seed.items()}
        content = io.BytesIO()
        np.savez_compressed(content, **rounded)
        write_bytes(self._seeds / f"{first_step:08d}.npz", content.getvalue())
        events: list[Any] = []
        means = {name: np.ma.masked_invalid(v).mean(axis=0) for name, v in by_seed.items()}
        shares = {
            float(name.removeprefix(GATE_SHARE)): values
            for name, values in means.items()
            if name.startswith(GATE_SHARE)
        }
        for i in range(max(map(len, means.values()), default=0)):
            step = first_step + i
            logged = {
                name: float(values[i])
                for name, values in means.items()
                if not np.ma.getmaskarray(values)[i]
            }
            summaries = [summary.scalar(name, value) for name, value in logged.items()]
            bars = _bars({gate: float(values[i]) for gate, values in shares.items()})
            if bars:
                summaries.append(_histogram(*bars))
            events += [Event(wall_time=time.time(), step=step, summary=one) for one in summaries]
            if self._tracker is not None:
                self._tracker(logged, bars, step)
        self._events.append(events)

    def close(self) -> None:
        """Finish what a tracker still has to send."""
        if self._tracker is not None:
            self._tracker.close()


def _histogram(limits: list[float], shares: list[float]) -> Any:
    """Return the share of every gate as a histogram with a bar for each gate of the grid."""
    from tensorboardX import summary

    middles = (np.array(limits[:-1]) + np.array(limits[1:])) / 2
    return summary.histogram_raw(
        "charts/gate",
        min=limits[0],
        max=limits[-1],
        num=1.0,
        sum=float(np.dot(shares, middles)),
        sum_squares=float(np.dot(shares, middles**2)),
        bucket_limits=limits[1:],
        bucket_counts=shares,
    )


def _bars(shares: Mapping[float, float]) -> tuple[list[float], list[float]] | None:
    """Return edges and heights of a histogram with one bar around every gate."""
    gates = np.array(sorted(shares))
    if len(gates) < 2:
        return None
    inner = (gates[:-1] + gates[1:]) / 2
    edges = [gates[0] - (inner[0] - gates[0]), *inner, gates[-1] + (gates[-1] - inner[-1])]
    return [float(edge) for edge in edges], [shares[gate] for gate in gates.tolist()]


class _WandB:
    """A Weights & Biases run of a folder, which a resumed training continues.

    The first failure is logged; the training then continues without W&B.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]):
        self._run: Any = None
        self._try(lambda: self._open(folder, config))

    def _open(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        id_file = folder / "wandb.json"
        run_id = json.loads(id_file.read_text())["id"] if id_file.is_file() else None
        folder.mkdir(parents=True, exist_ok=True)
        self._histogram = wandb.Histogram
        self._run = wandb.init(
            project="jroute",
            name=folder.absolute().parent.name,
            dir=str(folder),
            config=dict(config),
            id=run_id,
            resume="allow",
        )
        write_json(id_file, {"id": self._run.id}, indent=None)

    def __call__(
        self,
        values: Mapping[str, float],
        bars: tuple[list[float], list[float]] | None,
        step: int,
    ) -> None:
        if self._run is None:
            return
        payload: dict[str, Any] = dict(values)
        if bars:
            limits, shares = bars
            payload["charts/gate"] = self._histogram(
                np_histogram=(np.array(shares), np.array(limits))
            )
        self._try(lambda: self._run.log(payload, step=step))

    def close(self) -> None:
        """Finish the run."""
        if self._run is not None:
            self._try(self._run.finish)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            self._run = None
            reason = str(error).strip().splitlines() or [type(error).__name__]
            LOG.warning("W&B takes no more curves (%s); the run continues", reason[0])


def read_curves(folder: Path) -> tuple[dict[str, Float[np.ndarray, "seeds updates"]], bool]:
    """Read the curves of a run, and whether they are those of every seed.

    A folder without ``seeds`` (of an older run) has only TensorBoard's means, which become one
    row; an empty folder has no curves.

    Raises:
        UserError: A file is damaged.
    """
    chunks = sorted((folder / "seeds").glob("*.npz"))
    if not chunks:
        means = {name: np.array([row]) for name, row in _read_events(folder).items()}
        return means, False
    pieces = list(map(_read_chunk, chunks))
    names = set(pieces[0]).intersection(*pieces[1:])
    joined = {}
    for name in sorted(names):
        rows = {len(piece[name]) for piece in pieces}
        if not rows <= {1, max(rows)}:
            raise _damaged(folder / "seeds", f"its files have {sorted(rows)} seeds of {name:.60}")
        spread = [np.broadcast_to(p[name], (max(rows), p[name].shape[1])) for p in pieces]
        joined[name] = np.concatenate(spread, axis=1)
    return joined, max(map(len, joined.values()), default=0) > 1


def _read_chunk(file: Path) -> dict[str, Float[np.ndarray, "seeds updates"]]:
    """Return the curves of one file.

    Raises:
        UserError: It is not what ``Scalars`` writes.
    """
    curves = read_arrays(file, "remove it, or train again to write it again")
    for name, values in curves.items():
        if values.ndim != 2 or values.dtype != np.float32 or not values.size:
            raise _damaged(file, f"{name:.60} is not float32 by seeds and updates")
        if name.startswith(GATE_SHARE):
            _gate_of(file, name)
    return {name: values.astype(np.float64) for name, values in curves.items()}


def _gate_of(file: Path, name: str) -> float:
    """Return the gate that a curve of shares is of."""
    try:
        gate = float(name.removeprefix(GATE_SHARE))
    except ValueError:
        gate = float("nan")
    if not abs(gate) <= MAX_GATE:
        raise _damaged(file, f"{name:.60} names no gate")
    return gate


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged ({reason:.200}); remove {path} to go on without these training curves"
    )


def _read_events(folder: Path) -> dict[str, list[float]]:
    """Read scalars from TensorBoard's files: the last value of every step, NaN if it has none."""
    from google.protobuf.message import DecodeError
    from tensorboardX.proto.event_pb2 import Event  # type: ignore[attr-defined]

    curves: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        data, at = memoryview(path.read_bytes()), 0
        while at + 12 <= len(data):  # length, checksum, event, checksum
            size = int.from_bytes(data[at : at + 8], "little")
            if at + 16 + size > len(data):
                break  # a killed run's last event
            try:
                event = Event.FromString(bytes(data[at + 12 : at + 12 + size]))
            except DecodeError as error:
                raise _damaged(path, f"{error} at byte {at}") from None
            at += 16 + size
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    if not 0 <= event.step < MAX_UPDATES:
                        raise _damaged(path, f"an event has the step {event.step}")
                    if value.tag.startswith(GATE_SHARE):
                        _gate_of(path, value.tag)
                    curves.setdefault(value.tag, {})[event.step] = value.simple_value
    length = 1 + max((max(steps) for steps in curves.values()), default=-1)
    return {
        name: [steps.get(step, float("nan")) for step in range(length)]
        for name, steps in curves.items()
    }
