"""The execution shape of generation."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jroute.utils.keys import Keys, keys
from jroute.utils.ranges import check_ranges, whole

RANGES = {
    "slots": whole(1, 2**20, words=("auto",)),
    "chunk": whole(1, 2**20),
    "prefill_tokens": whole(1),
    "ahead": whole(0, 2**20),
}


@dataclass(frozen=True)
class EngineConfig:
    """Execution shape of generation: how a cell is generated, not what it means.

    Attributes:
        slots: Rows that run at a time, a multiple of the mesh's ``data`` axis; ``auto`` takes as
            many as the device's free memory holds, and no more than there are prompts.
        chunk: Maximum number of decode steps between checks for stop strings.
        unroll: Decode over separate layers, which is faster but holds the weights of the blocks
            twice; otherwise scan over the stacked ones.
        prefill_tokens: Prompt tokens to read at a time: as many prompts of equal padded width as
            fit, but no more than an eighth of the slots.
        ahead: Steps that the device runs on while the host refills slots; 0 lets it wait.
    """

    stored_keys: ClassVar[Keys] = keys("slots", "chunk", "unroll", "prefill_tokens", "ahead")

    slots: int | Literal["auto"] = 64
    chunk: int = 16
    unroll: bool = True
    prefill_tokens: int = 512
    ahead: int = 2

    def __post_init__(self) -> None:
        check_ranges("engine", self, RANGES)

    @property
    def batch(self) -> int:
        """Batch size where memory sets no limit: the slots, or 64 if they are ``auto``."""
        return 64 if self.slots == "auto" else self.slots

    def prefill_rows(self, width: int, slots: int, replicas: int) -> int:
        """Return how many prompts of a padded width are read together, however many wait."""
        fit = max(1, min(self.prefill_tokens // width, slots // 8))
        return max(1, fit // replicas) * replicas
