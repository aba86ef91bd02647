"""Which request occupies which slot, and which ones are read next."""

from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from jroute.generate.shapes import BatchPlan, Width


class Kind(NamedTuple):
    """Requests that can be read together: of one padded width, with one shared prefix."""

    width: Width
    prefix: Hashable


class Refill(NamedTuple):
    """Requests to read together.

    Attributes:
        kind: Their kind.
        members: Index of the request of each row; ``None`` for a dummy.
        at: Slot of each row within its replica; a dummy's lies outside.
        slots: Slot of each row.
    """

    kind: Kind
    members: list[int | None]
    at: Int[np.ndarray, " rows"]
    slots: list[int]


class Slots:
    """Free and taken slots of one run.

    Requests wait in groups of one kind, wide ones first, so that a prefill is filled with dummies
    only where a group ends. Slots of one replica are neighbours, as are the rows of a prefill.
    """

    def __init__(self, plan: BatchPlan, kinds: Sequence[Kind], replicas: int):
        self._plan = plan
        self._replicas = replicas
        self._each = plan.slots // replicas
        self._free = [deque(range(self._each)) for _ in range(replicas)]
        waiting: dict[Kind, deque[int]] = {}
        for i, kind in enumerate(kinds):
            waiting.setdefault(kind, deque()).append(i)
        order: Callable[[Kind], int] = lambda kind: -kind.width.total  # noqa: E731
        self._waiting = deque((kind, waiting[kind]) for kind in sorted(waiting, key=order))
        self.owners: list[int | None] = [None] * plan.slots

    @property
    def needed(self) -> int | None:
        """Number of free slots that the next refill takes; ``None`` if no request waits."""
        if not self._waiting:
            return None
        kind, members = self._waiting[0]
        return min(self._plan.rows[kind.width], len(members))

    @property
    def taken(self) -> bool:
        """Whether any request occupies a slot."""
        return any(owner is not None for owner in self.owners)

    def release(self, slot: int) -> None:
        """Free a slot."""
        self.owners[slot] = None
        self._free[slot // self._each].append(slot % self._each)

    def refill(self) -> Refill | None:
        """Take the next requests into free slots; ``None`` if none waits or too few are free."""
        needed = self.needed
        if needed is None or sum(map(len, self._free)) < needed:
            return None
        kind, members = self._waiting[0]
        rows = self._plan.rows[kind.width]
        part = rows // self._replicas
        taken: list[int | None] = [None] * rows
        at, slots = np.full(rows, self._each, np.int32), [-1] * rows
        for i in range(part):  # one row of every replica in turn, to load them evenly
            for replica, free in enumerate(self._free):
                if members and free:
                    row, place = replica * part + i, free.popleft()
                    taken[row], at[row] = members.popleft(), place
                    slots[row] = replica * self._each + place
                    self.owners[slots[row]] = taken[row]
        if not members:
            self._waiting.popleft()
        return Refill(kind, taken, at, slots)
