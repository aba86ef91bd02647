"""One of several processes: restores models onto their mesh, runs one, and writes what it found.

python -m tests.distributed.worker MODEL LARGE OUT    and then decodes until it is ended
"""

import os
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jroute.checkpoint import load_model
from jroute.distributed.mesh import make_mesh, shardings
from jroute.distributed.processes import join_processes
from jroute.model.config import DecoderConfig
from jroute.model.params import abstract_params, logical_axes
from tests.distributed.decoder import CONFIG, LARGE, greedy, logits


def bytes_read() -> int:
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def restore(model: Path, config: DecoderConfig) -> tuple[dict[str, Any], int]:
    """Parameters on a mesh that cuts the embedding axis across the processes; bytes read."""
    places = shardings(logical_axes(config), abstract_params(config), make_mesh(1, 4, 2))
    before = bytes_read()
    params, loaded = load_model(model, shardings=places)
    read = bytes_read() - before
    assert loaded == config
    return params, read


def main(model: Path, large: Path, out: Path) -> None:
    join_processes()
    params, _ = restore(model, CONFIG)
    results: dict[str, Any] = {"devices": len(jax.devices()), "read": restore(large, LARGE)[1]}
    mesh = make_mesh(1, 4, 2)
    for routed in (False, True):
        name = "routed" if routed else "plain"
        results[f"{name}_logits"] = logits(params, mesh, routed=routed)
        results[f"{name}_tokens"] = greedy(params, mesh, routed=routed).tokens
    np.savez(out / str(jax.process_index()), **results)
    print(f"pid {os.getpid()} goes on decoding", flush=True)
    while True:
        greedy(params, mesh, routed=False)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
