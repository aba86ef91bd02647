"""Estimates of what a long command costs, as arithmetic and as text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rate:
    """The rate at which cells are generated.

    Attributes:
        seconds: Wall time of one cell.
        tokens: Tokens of one cell, on average.
        cells: Cells that this was measured on.
        source: The measurement, in words.
    """

    seconds: float
    tokens: float
    cells: int
    source: str


@dataclass(frozen=True)
class MemoryUse:
    """Bytes on one device.

    Attributes:
        weights: Parameters as loaded.
        cache: Keys and values of all slots, and the logits of a step.
        working: What does not depend on the slots: separate weights to decode with, and the
            prefill of prompts; an estimate.
        limit: Memory of the device; 0 if the device does not report it.
    """

    weights: int
    cache: int
    working: int
    limit: int = 0

    @property
    def total(self) -> int:
        """Return the sum."""
        return self.weights + self.cache + self.working

    def __str__(self) -> str:
        """Return one line."""
        parts = ", ".join(
            f"{name} {format_bytes(getattr(self, name))}"
            for name in ("weights", "cache", "working")
        )
        limit = f", of {format_bytes(self.limit)}" if self.limit else ""
        return f"about {format_bytes(self.total)} on each device{limit} ({parts})"


@dataclass(frozen=True)
class Estimate:
    """The cost of filling a part of an outcome table.

    Attributes:
        cells: By split, cells needed and cells that exist.
        prompt_tokens: Tokens of the prompts of missing cells.
        limit: Most tokens a completion may have.
        memory: Memory use of one device.
        rate: Rate of generation; ``None`` if no cell is missing.
        devices: Number of devices.
        gpu: Whether the devices are GPUs.
        first: A line about what must run first.
    """

    cells: Mapping[Any, tuple[int, int]]
    prompt_tokens: int
    limit: int
    memory: MemoryUse
    rate: Rate | None
    devices: int
    gpu: bool
    first: str = ""

    @property
    def missing(self) -> int:
        """Return the number of cells to generate."""
        return sum(needed - existing for needed, existing in self.cells.values())

    @property
    def seconds(self) -> float:
        """Return the expected wall time."""
        return self.missing * self.rate.seconds if self.rate else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the figures, for tools."""
        return {
            "missing": self.missing,
            "prompt_tokens": self.prompt_tokens,
            "most_tokens": self.missing * self.limit,
            "expected_tokens": self.missing * self.rate.tokens if self.rate else 0,
            "memory_bytes": self.memory.total,
            "seconds": self.seconds,
            "device_hours": self.seconds * self.devices / 3600,
        }

    def __str__(self) -> str:
        """Return a few lines."""
        lines = [self.first] if self.first else []
        lines += [
            f"{split:<12} {needed - existing:>8} cells to make ({existing} of {needed} are there)"
            for split, (needed, existing) in self.cells.items()
        ]
        max_tokens = self.missing * self.limit
        lines.append(
            f"{'tokens':<12} {self.prompt_tokens} of prompts, at most {max_tokens} generated"
        )
        lines.append(f"{'memory':<12} {self.memory}")
        if self.rate:
            rate, unit = self.rate, hours_unit(self.gpu)
            lines[-2] += f", about {round(self.missing * rate.tokens)} expected"
            lines.append(
                f"{'time':<12} about {format_duration(self.seconds)} on {self.devices} "
                f"device{'s' if self.devices > 1 else ''}: "
                f"{self.seconds * self.devices / 3600:.2g} {unit}"
            )
            lines.append(
                f"{'by':<12} {1 / rate.seconds:.3g} cells/s, {rate.tokens / rate.seconds:.0f} "
                f"tokens/s: {rate.source}"
            )
        return "\n".join(lines)


def format_bytes(count: float) -> str:
    """Return bytes in the largest unit that leaves at least 1."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def format_duration(seconds: float) -> str:
    """Return wall time in words: ``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def hours_unit(gpu: bool) -> str:
    """Return the unit of an estimate's cost."""
    return "GPU-hours" if gpu else "device-hours"
