"""What a long command is going to cost, as arithmetic and as text."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Rate:
    """How fast cells are made.

    Attributes:
        seconds: Wall time of one cell.
        tokens: Tokens it generates on average.
        cells: How many cells this was measured on.
        source: Where that comes from.
    """

    seconds: float
    tokens: float
    cells: int
    source: str


@dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
        weights: Parameters, as they are loaded.
        cache: Keys and values of all slots, and the logits of a step.
        working: What is there whatever the slots: separate weights to decode with, and prompts as
            they are read; an estimate.
        limit: Memory that the device has for all of it; 0 if it does not tell.
    """

    weights: int
    cache: int
    working: int
    limit: int = 0

    @property
    def total(self) -> int:
        """All of it together."""
        return self.weights + self.cache + self.working

    def __str__(self) -> str:
        """One line."""
        parts = ", ".join(
            f"{name} {size(getattr(self, name))}" for name in ("weights", "cache", "working")
        )
        limit = f", of {size(self.limit)}" if self.limit else ""
        return f"about {size(self.total)} on each device{limit} ({parts})"


@dataclass(frozen=True)
class Plan:
    """What filling a part of an outcome table takes.

    Attributes:
        cells: By split, cells wanted and cells that are there.
        prompt_tokens: Tokens of the prompts of missing cells.
        limit: Most tokens a completion may have.
        memory: On one device.
        rate: How fast cells are made; ``None`` where none are missing.
        devices: Number of devices.
        gpu: Whether they are GPUs.
        first: A line on what has to come before.
    """

    cells: Mapping[Any, tuple[int, int]]
    prompt_tokens: int
    limit: int
    memory: Memory
    rate: Rate | None
    devices: int
    gpu: bool
    first: str = ""

    @property
    def missing(self) -> int:
        """Cells to make."""
        return sum(wanted - there for wanted, there in self.cells.values())

    @property
    def seconds(self) -> float:
        """Expected wall time."""
        return self.missing * self.rate.seconds if self.rate else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Its figures, for tools."""
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
        """A few lines."""
        lines = [self.first] if self.first else []
        lines += [
            f"{split:<12} {wanted - there:>8} cells to make ({there} of {wanted} are there)"
            for split, (wanted, there) in self.cells.items()
        ]
        most = self.missing * self.limit
        lines.append(f"{'tokens':<12} {self.prompt_tokens} of prompts, at most {most} generated")
        lines.append(f"{'memory':<12} {self.memory}")
        if self.rate:
            rate, unit = self.rate, "GPU-hours" if self.gpu else "device-hours"
            lines[-2] += f", about {round(self.missing * rate.tokens)} expected"
            lines.append(
                f"{'time':<12} about {duration(self.seconds)} on {self.devices} "
                f"device{'s' if self.devices > 1 else ''}: "
                f"{self.seconds * self.devices / 3600:.2g} {unit}"
            )
            lines.append(
                f"{'by':<12} {1 / rate.seconds:.3g} cells/s, {rate.tokens / rate.seconds:.0f} "
                f"tokens/s: {rate.source}"
            )
        return "\n".join(lines)


def size(count: float) -> str:
    """Bytes in the largest unit that leaves at least 1."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def duration(seconds: float) -> str:
    """Wall time in words: ``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
