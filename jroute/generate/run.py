"""One run of the engine: what it dispatches to the device, and what it reads back."""

from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jroute.distributed.mesh import num_replicas, place, replicate
from jroute.generate import programs
from jroute.generate.active_rows import ActiveRows
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Completion, Decoding
from jroute.generate.finite import NotFiniteError, not_finite
from jroute.generate.programs import Chunk, ChunkControl, DecodeState, Prefix, Rows
from jroute.generate.requests import FrozenModel, Progress, Request, any_gated
from jroute.generate.sampling import Choice
from jroute.generate.shapes import BatchPlan, Width
from jroute.generate.slots import Kind, Refill, Slots


class _Unread(NamedTuple):
    """The results of a dispatched program, not yet read.

    Attributes:
        chunk: Its results, on the device.
        owners: Index of the request of each of its rows.
        steps: Most tokens that a row can have received.
        decodes: Whether the program ran decode steps.
    """

    chunk: Chunk
    owners: list[int | None]
    steps: int
    decodes: bool


class EngineRun:
    """The state of a run on the device, and what the host knows of it.

    The device always has work before the host reads its last results. Decisions follow from results
    alone, never from a clock, so several processes make the same ones.

    Attributes:
        progress: Counts so far.
    """

    def __init__(
        self,
        model: FrozenModel,
        decoding: Decoding,
        config: EngineConfig,
        choice: Choice,
        requests: Sequence[Request],
        plan: BatchPlan,
    ):
        self._model, self._decoding, self._config = model, decoding, config
        self._requests, self._plan = requests, plan
        self._replicas = num_replicas()
        self._slots = Slots(plan, [_kind(request) for request in requests], self._replicas)
        self._rows = ActiveRows(model, decoding)
        self._stopped: set[int] = set()  # slots whose rows only the host has ended
        self._unread: deque[_Unread] = deque()
        self._finished: list[tuple[int, Completion]] = []
        listed = plan.programs(chunk=config.chunk, unroll=config.unroll)
        self.progress = Progress(0, len(requests), 0, 0, 0, plan.slots, listed)
        self._gated = any_gated(requests)
        self._ends = replicate(np.asarray(model.end_token_ids, np.int32))
        self._routing = replicate(model.routing) if self._gated else None
        self._static: dict[str, Any] = {"config": model.config, "choice": choice}
        self._prefix: tuple[Hashable, Prefix | None] = (None, None)
        self._capacity = plan.capacities[0]
        self._state: DecodeState | None = programs.empty(
            model.params,
            config=model.config,
            slots=plan.slots,
            capacity=self._capacity,
            routed=self._gated,
            unroll=config.unroll,
        )
        self._weights = programs.unstack(model.params) if config.unroll else model.params

    @property
    def unfinished(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._rows) or self._slots.needed is not None

    # Work for the device ----------------------------------------------------------------------

    def dispatch(self) -> None:
        """Refill free slots, then run a chunk, and ``ahead`` more steps while the host reads it."""
        while (refill := self._slots.refill()) is not None:
            self._prefill(refill)
        config, needed = self._config, self._slots.needed
        self._ensure_capacity(config.chunk + config.ahead)
        self._decode(config.chunk, self._plan.slots if needed is None else needed)
        if config.ahead:
            self._decode(config.ahead, self._plan.slots)

    def _prefill(self, refill: Refill) -> None:
        rows = self._read_rows(refill)
        state, chunk = programs.prefill(
            self._model.params,
            rows,
            self._ends,
            self._routing,
            **self._static,
            unroll=self._config.unroll,
        )
        at = place(refill.at, ("batch",))
        self._state = programs.insert(self._state, state, at)  # type: ignore[arg-type]
        self._unread.append(_Unread(chunk, refill.members, 1, False))

    def _read_rows(self, refill: Refill) -> Rows:
        """Make the batch of a prefill, and take its requests as active."""
        count, width = len(refill.members), refill.kind.width
        tokens = np.zeros((count, width.own), np.int32)
        lengths, seeds, limits = (np.zeros(count, np.int32) for _ in range(3))
        gate = np.zeros((count, self._model.config.num_hidden_layers), np.float32)
        for row, index in enumerate(refill.members):
            if index is None:
                continue
            request = self._requests[index]
            own = request.tokens[request.prefix_length :]
            tokens[row, : len(own)], lengths[row] = own, len(own)
            seeds[row] = request.row_seed
            limits[row] = request.max_new_tokens(self._decoding)
            if request.gate is not None:
                gate[row] = request.gate
            self._rows.add(index, len(request.tokens), int(limits[row]))
            self._stopped.discard(refill.slots[row])
        return Rows(
            place(tokens, ("batch", "seq")),
            place(lengths, ("batch",)),
            place(seeds, ("batch",)),
            place(limits, ("batch",)),
            place(gate, ("batch", "layers")) if self._gated else None,
            self._read_prefix(refill) if refill.kind.prefix is not None else None,
        )

    def _read_prefix(self, refill: Refill) -> Prefix:
        """Read what the rows of a refill begin with; groups of one prefix follow one another."""
        key, prefix = self._prefix
        if prefix is not None and key == refill.kind.prefix:
            return prefix
        first = next(self._requests[i] for i in refill.members if i is not None)
        length = first.prefix_length
        tokens = np.zeros((self._replicas, refill.kind.width.prefix), np.int32)
        tokens[:, :length] = first.tokens[:length]
        gate = np.zeros((self._replicas, self._model.config.num_hidden_layers), np.float32)
        if first.gate is not None:
            gate[:] = first.gate
        cache = programs.read_prefix(
            self._model.params,
            place(tokens, ("batch", "seq")),
            length,
            self._routing,
            place(gate, ("batch", "layers")) if self._gated else None,
            config=self._model.config,
        )
        prefix = Prefix(cache, length)
        self._prefix = (refill.kind.prefix, prefix)
        return prefix

    def _ensure_capacity(self, steps: int) -> None:
        """Lengthen the cache if a row could outgrow it within this many steps."""
        needed = self._rows.longest(steps + sum(item.steps for item in self._unread))
        if needed > self._capacity:
            self._capacity = next(c for c in self._plan.capacities if c >= needed)
            assert self._state is not None
            self._state = programs.with_capacity(self._state, self._capacity)

    def _decode(self, steps: int, stop_when_free: int) -> None:
        stopped = np.zeros(self._plan.slots, bool)
        stopped[list(self._stopped)] = True
        self._stopped.clear()
        self._state, chunk = programs.decode(
            self._weights,
            self._state,  # type: ignore[arg-type]
            self._ends,
            self._routing,
            ChunkControl(place(stopped, ("slots",)), steps, stop_when_free),
            **self._static,
            chunk=self._config.chunk,
        )
        self._unread.append(_Unread(chunk, list(self._slots.owners), steps, True))

    # Results of the device --------------------------------------------------------------------

    def read(self) -> None:
        """Read what was dispatched, except the ``ahead`` steps, which run meanwhile."""
        while len(self._unread) > bool(self._config.ahead):
            self._take(self._unread.popleft())

    def _take(self, item: _Unread) -> None:
        chunk: Chunk = jax.device_get(item.chunk)
        tokens, ended, broken = self._rows.append(item.owners, chunk)
        slots = {owner: slot for slot, owner in enumerate(self._slots.owners)}
        for request, completion, on_device in ended:
            self._slots.release(slots[request])
            if not on_device:
                self._stopped.add(slots[request])
            self._finished.append((request, completion))
        progress = self.progress
        self.progress = progress._replace(
            finished=progress.finished + len(ended), tokens=progress.tokens + tokens
        )
        if item.decodes:
            self.progress = self.progress._replace(
                steps=progress.steps + int(chunk.steps),
                active_steps=progress.active_steps + int(chunk.active_steps),
            )
        if broken:
            raise self._not_finite(min(broken))

    def _not_finite(self, index: int) -> NotFiniteError:
        """Free the device, and make the exception for a row whose logits are not finite."""
        request, model = self._requests[index], self._model
        tokens = [*request.tokens, *self._rows.ids(index)]
        self.release()
        return not_finite(
            "the logits of prompt",
            index,
            model.params,
            model.config,
            tokens,
            position=len(tokens) - 1,
            routing=model.routing,
            gate=request.gate,
        )

    def take_finished(self) -> list[tuple[int, Completion]]:
        """Return what has finished since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def release(self) -> None:
        """Free everything on the device, even if a traceback keeps the run alive."""
        self._state, self._prefix, self._weights = None, (None, None), self._model.params
        self._unread.clear()


def _kind(request: Request) -> Kind:
    length = request.prefix_length
    width = Width.of(len(request.tokens), length)
    if not length:
        return Kind(width, None)
    gate = None if request.gate is None else np.asarray(request.gate, np.float32).tobytes()
    return Kind(width, (tuple(request.tokens[:length]), gate))
