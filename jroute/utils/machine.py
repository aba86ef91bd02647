"""What a measurement was made on, for the JSON that reports it."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("jroute", "jax", "jaxlib", "flax", "orbax-checkpoint", "tensorstore", "numpy")


def describe_machine() -> dict[str, Any]:
    """Processor, memory, system and library versions; nothing that names the machine or a user."""
    return {
        "cpu": _first_value("/proc/cpuinfo", "model name") or platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _first_value(file: str, key: str) -> str:
    path = Path(file)
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
