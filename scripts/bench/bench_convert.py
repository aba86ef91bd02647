"""Measure a conversion: its memory, and its time beside ``cp`` and ``sync`` of the same files.

    python scripts/bench/bench_convert.py --like DIR_WITH_config.json --out results.json
    python scripts/bench/bench_convert.py --source CHECKPOINT --out results.json

With ``--like`` it makes random weights of that shape first. Copies and conversions alternate, so
that both meet the same machine; every one starts with its output removed and the disk idle, has
the source in the page cache, and ends when ``sync`` returns. The anonymous memory of the
converting process is sampled every 20 ms: pages of mapped files, which the system takes back
whenever it needs them, do not count.
"""

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from converters import mapping
from jroute.checkpoint import read_manifest
from jroute.checkpoint.conversion import open_source
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.machine import describe_machine

SAMPLE_SECONDS = 0.02
GOAL_RATIO = 4.0


def bench(source: Path, work: Path, repeats: int) -> dict[str, Any]:
    """Copy and convert a checkpoint in turn.

    Args:
        source: A folder in Hugging Face layout.
        work: An empty folder on the disk to measure, with room for two copies.
        repeats: How often to do both.

    Returns:
        Every time, the ratios, the peaks of memory and their bound, and the machine with its load.

    Raises:
        UserError: The source cannot be converted.
    """
    load = os.getloadavg()[0]
    opened = open_source(source)
    largest = max(
        math.prod(entry.shape) * opened.dtype.itemsize
        for entry in mapping.layout(opened.config).values()
    )
    files = [file for file in source.iterdir() if file.is_file()]
    for file in files:
        subprocess.run(["cat", file], stdout=subprocess.DEVNULL, check=True)
    copies, conversions = [], []
    for number in range(1, repeats + 1):
        copies.append(_timed(["cp", "-r", str(source), str(work / "copy")], work / "copy"))
        command = [sys.executable, "-m", "jroute.convert", "--source", str(source)]
        out = work / "model"
        conversions.append(_timed([*command, "--out", str(out)], out, keep=number == repeats))
        pair = copies[-1]["seconds"], conversions[-1]["seconds"]
        print(f"{number}: cp {pair[0]:.1f} s, conversion {pair[1]:.1f} s", flush=True)
    manifest = read_manifest(work / "model")
    shutil.rmtree(work / "model")
    ratios = [
        there["seconds"] / here["seconds"] for here, there in zip(copies, conversions, strict=True)
    ]
    peak = max(run["peak_anonymous_bytes"] for run in conversions)
    bound = int(1.5 * largest) + 2**30
    return {
        "what": "conversion of a checkpoint against cp of its files, both with sync",
        "machine": {
            **describe_machine(),
            "file_system": _file_system(work),
            "load_average_before": load,
        },
        "source": {
            "files": len(files),
            "bytes": sum(file.stat().st_size for file in files),
            "parameters": manifest["parameters"],
            "dtype": manifest["dtype"],
            "layers": opened.config.num_hidden_layers,
            "page_cache": "warm",
        },
        "copy_seconds": [run["seconds"] for run in copies],
        "conversion_seconds": [run["seconds"] for run in conversions],
        "ratio": {
            "each": ratios,
            "median": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "goal": GOAL_RATIO,
            "met": statistics.median(ratios) <= GOAL_RATIO,
        },
        "memory": {
            "peak_anonymous_bytes": [run["peak_anonymous_bytes"] for run in conversions],
            "peak_resident_bytes": [run["peak_resident_bytes"] for run in conversions],
            "largest_array_bytes": largest,
            "bound_bytes": bound,
            "bound": "1.5 x largest stored array + 1 GiB, anonymous",
            "met": peak <= bound,
        },
    }


def _make_source(like: Path, source: Path, layers: int | None) -> None:
    script = Path(__file__).parents[1] / "random_model.py"
    command = [sys.executable, str(script), "--like", str(like), "--out", str(source)]
    command += ["--layers", str(layers)] if layers else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))


def _timed(command: Sequence[str], out: Path, *, keep: bool = False) -> dict[str, Any]:
    """Run a command with ``sync`` after it; return its time and its peaks of memory."""
    os.sync()
    anonymous = resident = 0
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors) as process:
            while process.poll() is None:
                status = _status(process.pid)
                anonymous = max(anonymous, status.get("RssAnon", 0))
                resident = max(resident, status.get("VmHWM", 0))
                time.sleep(SAMPLE_SECONDS)
        os.sync()
        seconds = time.perf_counter() - start
        errors.seek(0)
        message = errors.read().strip() or "no message"
    if process.returncode:
        raise UserError(f"{' '.join(command)} failed: {message.splitlines()[-1]}")
    if not keep:
        shutil.rmtree(out)
    return {
        "seconds": seconds,
        "peak_anonymous_bytes": anonymous,
        "peak_resident_bytes": resident,
    }


def _status(process: int) -> dict[str, int]:
    """Return a process's memory in bytes as Linux reports it; nothing once it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in lines)
    return {key: int(value.split()[0]) * 1024 for key, value in pairs if value.endswith("kB")}


def _file_system(folder: Path) -> str:
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    return max(
        (m for m in mounts if folder.resolve().is_relative_to(m[0])), key=lambda m: len(m[0])
    )[1]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, measure, print and write."""
    parser = argparse.ArgumentParser(
        prog="python scripts/bench/bench_convert.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--source", type=Path, help="a checkpoint to convert")
    what.add_argument("--like", type=Path, help="make random weights of this config.json's shape")
    parser.add_argument("--layers", type=int, help="with --like: number of blocks")
    parser.add_argument("--repeats", type=int, default=3, help="how often to do both (default: 3)")
    parser.add_argument("--work", type=Path, help="a folder on the disk to measure")
    parser.add_argument("--out", required=True, type=Path, help="the JSON file to write")
    arguments = parser.parse_args(argv)
    if arguments.repeats < 1:
        raise UserError(f"--repeats is {arguments.repeats}; give a positive number")
    if arguments.work is not None and not arguments.work.is_dir():
        raise UserError(f"there is no folder {arguments.work}; make it or leave out --work")
    if not arguments.out.parent.is_dir():
        raise UserError(f"there is no folder {arguments.out.parent} for --out; make it")
    with tempfile.TemporaryDirectory(prefix="bench-convert-", dir=arguments.work) as folder:
        work, source = Path(folder), arguments.source
        if source is None:
            source = work / "source"
            _make_source(arguments.like, source, arguments.layers)
        results = bench(source, work, arguments.repeats)
    write_json(arguments.out, results)
    print(_table(results))
    print(f"wrote {arguments.out}")


def _table(results: dict[str, Any]) -> str:
    ratio, memory = results["ratio"], results["memory"]

    def verdict(met: bool) -> str:
        return "met" if met else "missed"

    def seconds(values: Sequence[float]) -> str:
        return " ".join(f"{value:.1f}" for value in values)

    return "\n".join(
        [
            f"checkpoint     {results['source']['bytes']:,} bytes, {results['source']['dtype']}",
            f"cp + sync      {seconds(results['copy_seconds'])} s",
            f"convert + sync {seconds(results['conversion_seconds'])} s",
            f"ratio          {ratio['median']:.2f} ({ratio['lowest']:.2f} to "
            f"{ratio['highest']:.2f}), goal {ratio['goal']:.0f}: {verdict(ratio['met'])}",
            f"peak RssAnon   {max(memory['peak_anonymous_bytes']) / 2**20:,.0f} MiB, bound "
            f"{memory['bound_bytes'] / 2**20:,.0f} MiB: {verdict(memory['met'])}",
        ]
    )


if __name__ == "__main__":
    run_command(main, "nothing was written")
