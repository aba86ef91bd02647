"""The whole campaign: ``python -m tests.campaign --out campaign.json``.

It disturbs the commands of a small experiment, one fault at a time, and counts what was lost,
wrong, left behind, or ended in a traceback. It takes hours on two cores; ``--parts`` and
``--scale`` choose less, and parts that ``--out`` already holds stay in it. File systems in memory
are mounted for full disks, which needs root.
"""

import argparse
import json
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jroute.utils.files import write_json
from jroute.utils.machine import describe_machine
from tests.campaign import broken, disks, flips, kills, races, readers
from tests.campaign.lab import Lab, live_through
from tests.campaign.mutations import mutations
from tests.campaign.trials import FAULTS, Trial, counts, lines, table
from tests.campaign.worker import ROOT, Worker

SOURCE = ROOT / "jroute" / "assets" / "tiny-gated"

Part = Callable[[Lab, Worker, Path, random.Random, float], Iterator[Trial]]


def _mutated_texts(
    lab: Lab, worker: Worker, folder: Path, rng: random.Random, scale: float
) -> Iterator[Trial]:
    for name, inputs, read in readers.text_readers(folder):
        yield from mutations(name, inputs, read, rng, round(10_000 * scale))


def _mutated_files(
    lab: Lab, worker: Worker, folder: Path, rng: random.Random, scale: float
) -> Iterator[Trial]:
    day = lab.end
    samples = sorted((day / "run" / "lm_eval" / "rl").glob("samples_*"))[0]
    every = [
        *readers.file_readers(SOURCE, day / "model", day / "run", folder),
        readers.sample_reader(samples, folder / "samples"),
    ]
    for name, inputs, read in every:
        yield from mutations(name, inputs, read, rng, round(10_000 * scale))


PARTS: dict[str, Part] = {
    "random kills": lambda lab, worker, folder, rng, scale: kills.random_kills(
        lab, worker, folder, rng, round(100 * scale)
    ),
    "kills at renames": lambda lab, worker, folder, rng, scale: kills.rename_kills(
        lab, worker, folder, every=max(1, round(1 / scale))
    ),
    "full disks": lambda lab, worker, folder, rng, scale: disks.full_disks(
        lab, worker, folder, rng, round(80 * scale)
    ),
    "two at once": lambda lab, worker, folder, rng, scale: races.races(
        lab, worker, folder, rng, round(50 * scale)
    ),
    "flipped bits": lambda lab, worker, folder, rng, scale: flips.flips(
        lab.end, folder, rng, round(200 * scale)
    ),
    "broken inputs": lambda lab, worker, folder, rng, scale: broken.broken_inputs(
        lab, worker, folder, rng, None if scale >= 1 else round(len(list(broken.inputs())) * scale)
    ),
    "mutated texts": _mutated_texts,
    "mutated files": _mutated_files,
}


def main() -> int:
    """Run the parts and write their counts; the status says whether a goal was missed."""
    options = _options()
    with tempfile.TemporaryDirectory(prefix="campaign-") as name, Worker() as worker:
        folder = Path(name)
        lab = live_through(worker, folder / "lab")
        for part in options.parts:
            trials, seconds = _run(part, lab, worker, folder, options)
            content = _read(options.out)  # other parts may have been added meanwhile
            content["parts"][part] = {
                "command": shlex.join(["python", "-m", "tests.campaign", *sys.argv[1:]]),
                "seconds": round(seconds),
                **counts(trials),
                "faults": lines(trials),
            }
            content["parts"] = {p: content["parts"][p] for p in PARTS if p in content["parts"]}
            content["total"] = _total(content["parts"])
            write_json(options.out, content)
    content = _read(options.out)
    print(table(content["parts"]))
    return int(any(content["total"][fault] for fault in FAULTS))


def _read(out: Path) -> dict[str, Any]:
    """Return what the parts that ran before have written."""
    parts = json.loads(out.read_text())["parts"] if out.is_file() else {}
    return {"machine": describe_machine(), "parts": parts, "total": _total(parts)}


def _run(
    part: str, lab: Lab, worker: Worker, folder: Path, options: argparse.Namespace
) -> tuple[list[Trial], float]:
    """Run one part; return its trials and the seconds it took."""
    began = time.monotonic()
    rng = random.Random(f"{options.seed} {part}")
    trials = []
    place = folder / part.replace(" ", "-")
    for trial in PARTS[part](lab, worker, place, rng, options.scale):
        trials.append(trial)
        for line in lines([trial]):
            print(line, flush=True)
    seconds = time.monotonic() - began
    print(f"{part}: {counts(trials)} in {seconds:.0f} s", flush=True)
    return trials, seconds


def _total(parts: Mapping[str, Mapping[str, int]]) -> dict[str, int]:
    return {
        key: sum(part[key] for part in parts.values()) for key in ("trials", "took_effect", *FAULTS)
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    add = parser.add_argument
    add("--out", type=Path, default=Path("campaign.json"), help="JSON with the counts")
    add("--seed", type=int, default=0, help="seed of every choice")
    add("--scale", type=float, default=1.0, help="fraction of the trials")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="by default all")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
