"""Continuous batching: a fixed number of slots, refilled while the device runs on.

Requests of any number go in; a slot whose row is finished takes the next one, so that short rows do
not wait for long ones. All shapes are known before a run (``Engine.programs``), and at a fixed
shape a row's tokens depend on that row alone: not on its slot, its neighbours, or when it came.
(The length of the cache, which neighbours can bring about, is part of the shape on a GPU only.)
Under ``jax.set_mesh`` the slots lie on the mesh's ``data`` axis.
"""

from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import jax
import numpy as np
from transformers import PreTrainedTokenizerFast

from jroute.distributed.mesh import num_replicas, place, replicate
from jroute.generate import programs
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Completion, Decoding, StopReason
from jroute.generate.memory import check_memory, plan_batch
from jroute.generate.programs import Chunk, DecodeState, Rows
from jroute.generate.requests import Progress, Request
from jroute.generate.sampling import Choice, Logprobs
from jroute.generate.shapes import BatchPlan, Program, Width, check_context
from jroute.generate.slots import Kind, Refill, Slots
from jroute.generate.stopping import Stops, Watch
from jroute.model.attention import KeyValue
from jroute.model.config import Qwen3Config
from jroute.model.params import Params
from jroute.routing.mixing import Routing
from jroute.utils.errors import UserError


class Engine:
    """Completes requests under one fixed decoding.

    Args:
        params: Parameters of the model.
        config: Its shape.
        tokenizer: Makes text of tokens.
        decoding: The decoding of all requests.
        end_token_ids: Tokens that end a completion.
        routing: Streams that gates act on.
        shape: The execution shape.
        logprobs: Log-probabilities to tell: ``raw``, of the model's own distribution, or
            ``truncated``, of the one drawn from (after temperature, top-k, top-p, min-p).
        margins: Tell the smallest margin of each completion.
    """

    def __init__(
        self,
        params: Params,
        config: Qwen3Config,
        tokenizer: PreTrainedTokenizerFast,
        decoding: Decoding,
        *,
        end_token_ids: Sequence[int],
        routing: Routing | None = None,
        shape: EngineConfig | None = None,
        logprobs: Logprobs | None = None,
        margins: bool = False,
    ):
        self.params = params
        self.config = config
        self.tokenizer = tokenizer
        self.decoding = decoding
        self.ends = np.asarray(end_token_ids, np.int32)
        self.routing = routing
        self.shape = shape or EngineConfig()
        self.choice = Choice(decoding.strategies, decoding.min_new_tokens, logprobs, margins)

    def limit(self, request: Request) -> int:
        """Most new tokens of a request."""
        return request.limit or self.decoding.max_new_tokens

    def shared(self, request: Request) -> int:
        """Leading tokens read once for many; the last token of a prompt is always its own."""
        return min(request.shared, len(request.tokens) - 1)

    def plan(self, requests: Sequence[Request]) -> BatchPlan:
        """The shapes of a run.

        Raises:
            UserError: A prompt does not fit the context, a gate has no routing, or the slots do
                not fit the mesh or its memory.
        """
        for request in requests:
            most = self.decoding.max_new_tokens
            if not 0 <= request.limit <= most or request.shared < 0:
                raise UserError(
                    f"a request has limit {request.limit} and shared {request.shared}; neither may "
                    f"be negative, and the limit may not pass max_new_tokens, {most}"
                )
            check_context(
                len(request.tokens), self.limit(request), self.config.max_position_embeddings
            )
            if request.gate is not None and self.routing is None:
                raise UserError(
                    "a gate was given, but no routing: load the model with one to use a gate"
                )
        replicas, slots = num_replicas(), self.shape.slots
        if slots != "auto" and slots % replicas:
            raise UserError(
                f"engine.slots is {slots}, which the {replicas} replicas of mesh.data do not "
                f"divide; give a multiple of {replicas}"
            )
        prompts = [(len(r.tokens), self.shared(r), self.limit(r)) for r in requests]
        streams = self.routing.config.size if self.routing and _routed(requests) else 0
        plan, estimate = plan_batch(
            prompts, self.shape, self.params, self.config, routed_streams=streams
        )
        check_memory(estimate, plan.slots)
        return plan

    def programs(self, requests: Sequence[Request]) -> tuple[Program, ...]:
        """Every program that completing these requests may compile.

        Growing caches are listed to their full length, which rows that end early never need.
        """
        if not requests:
            return ()
        return self.plan(requests).programs(chunk=self.shape.chunk, unroll=self.shape.unroll)

    def stream(
        self,
        requests: Sequence[Request],
        *,
        progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Completes requests, telling each with its index as it finishes.

        Closing the iterator, or an exception of any kind, frees the device.

        Args:
            requests: What to complete.
            progress: Called at the start and after every look at the device.

        Raises:
            UserError: See ``plan``.
        """
        plan = self.plan(requests) if requests else None

        def one_by_one() -> Iterator[tuple[int, Completion]]:
            with closing(self._finishing(requests, plan, progress)) as batches:
                for some in batches:
                    yield from some

        return one_by_one()

    def run(
        self,
        requests: Sequence[Request],
        *,
        finished: Callable[[list[int], list[Completion]], None] | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> list[Completion]:
        """Completes every request, in the order given.

        Args:
            requests: What to complete.
            finished: Called with the indices and completions of requests as they finish. What has
                finished is told even if the run ends by an exception or Ctrl-C.
            progress: As for ``stream``.

        Raises:
            UserError: See ``plan``.
        """
        done: dict[int, Completion] = {}
        plan = self.plan(requests) if requests else None
        with closing(self._finishing(requests, plan, progress)) as batches:
            for some in batches:
                done.update(some)
                if finished:
                    finished([i for i, _ in some], [completion for _, completion in some])
        return [done[i] for i in range(len(requests))]

    def _finishing(
        self,
        requests: Sequence[Request],
        plan: BatchPlan | None,
        progress: Callable[[Progress], None] | None,
    ) -> Generator[list[tuple[int, Completion]], None, None]:
        if plan is None:
            return
        run = _Run(self, requests, plan)
        try:
            if progress:
                progress(run.progress)
            while run.unfinished:
                run.dispatch()
                run.read()
                if progress:
                    progress(run.progress)
                yield from run.take_finished()
        except GeneratorExit:
            raise
        except BaseException:
            run.release()
            yield from run.take_finished()  # what had finished before
            raise
        finally:
            run.release()


def _routed(requests: Sequence[Request]) -> bool:
    return any(request.gate is not None for request in requests)


class _Row:
    """A request in its slot, as far as the host knows."""

    __slots__ = ("ids", "length", "limit", "logprobs", "margins", "watch")

    def __init__(self, length: int, limit: int):
        self.length, self.limit = length, limit
        self.ids: list[int] = []
        self.logprobs: list[float] = []
        self.margins: list[float] = []
        self.watch = Watch(self.ids)


class _Unread(NamedTuple):
    """A program that was dispatched, and what its rows belong to."""

    chunk: Chunk
    owners: list[int | None]
    slots: Sequence[int]
    steps: int
    decodes: bool


class _Run:
    """One run of an engine: its state on the device, and what the host knows of it.

    The device is always given work before its last results are read. Decisions follow from results
    alone, never from a clock, so several processes come to the same ones.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request], plan: BatchPlan):
        self._engine, self._requests, self._plan = engine, requests, plan
        shape, config = engine.shape, engine.config
        replicas = num_replicas()
        self._slots = Slots(plan, [self._kind(request) for request in requests], replicas)
        self._replicas = replicas
        self._rows: dict[int, _Row] = {}
        self._stopped: set[int] = set()
        self._unread: deque[_Unread] = deque()
        self._stops = Stops(engine.tokenizer, engine.decoding.stop, engine.decoding.min_new_tokens)
        self._routed = _routed(requests)
        self._ends = replicate(engine.ends)
        self._routing = replicate(engine.routing) if self._routed else None
        self._static: dict[str, Any] = {"config": config, "choice": engine.choice}
        self._prefix: tuple[Hashable, KeyValue | None] = (None, None)
        self.finished: list[tuple[int, Completion]] = []
        self._counts = np.zeros(4, np.int64)  # finished, tokens, steps, active_steps
        self._listed = plan.programs(chunk=shape.chunk, unroll=shape.unroll)
        self._capacity = plan.capacities[0]
        self._weights = engine.params
        self._state: DecodeState | None = programs.empty(
            engine.params,
            config=config,
            slots=plan.slots,
            capacity=self._capacity,
            routed=self._routed,
            unroll=shape.unroll,
        )
        if shape.unroll:
            self._weights = programs.unstack(engine.params)

    def _kind(self, request: Request) -> Kind:
        shared = self._engine.shared(request)
        width = Width.of(len(request.tokens), shared)
        if not shared:
            return Kind(width, None)
        gate = None if request.gate is None else np.asarray(request.gate, np.float32).tobytes()
        return Kind(width, (tuple(request.tokens[:shared]), gate))

    @property
    def unfinished(self) -> bool:
        """Whether a request waits or runs."""
        return bool(self._rows) or self._slots.needed is not None

    @property
    def progress(self) -> Progress:
        """Counts so far."""
        done, tokens, steps, active_steps = map(int, self._counts)
        total = len(self._requests)
        return Progress(done, total, tokens, steps, active_steps, self._plan.slots, self._listed)

    # Work for the device ----------------------------------------------------------------------

    def dispatch(self) -> None:
        """Refills free slots, then runs a chunk, and some steps more while the host reads it."""
        while (refill := self._slots.refill()) is not None:
            self._prefill(refill)
        shape, needed = self._engine.shape, self._slots.needed
        self._ensure_capacity(shape.chunk + shape.ahead)
        self._decode(shape.chunk, self._plan.slots if needed is None else needed)
        if shape.ahead:
            self._decode(shape.ahead, self._plan.slots)

    def _prefill(self, refill: Refill) -> None:
        engine, (width, _) = self._engine, refill.kind
        rows = len(refill.members)
        tokens = np.zeros((rows, width.rest), np.int32)
        lengths, seeds, limits = (np.zeros(rows, np.int32) for _ in range(3))
        gate = np.zeros((rows, engine.config.num_hidden_layers), np.float32)
        shared = 0
        for row, index in enumerate(refill.members):
            if index is None:
                continue
            request = self._requests[index]
            shared = engine.shared(request)
            own = request.tokens[shared:]
            tokens[row, : len(own)], lengths[row] = own, len(own)
            seeds[row], limits[row] = request.row_seed, engine.limit(request)
            if request.gate is not None:
                gate[row] = request.gate
            self._rows[index] = _Row(len(request.tokens), engine.limit(request))
            self._stopped.discard(refill.slots[row])
        batch = Rows(
            place(tokens, ("batch", "seq")),
            place(lengths, ("batch",)),
            place(seeds, ("batch",)),
            place(limits, ("batch",)),
            place(gate, ("batch", "layers")) if self._routed else None,
        )
        after = (self._prefix_of(refill, shared), shared) if shared else ()
        state, chunk = programs.prefill(
            engine.params,
            batch,
            self._ends,
            self._routing,
            *after,
            **self._static,
            unroll=engine.shape.unroll,
        )
        at = place(refill.at, ("batch",))
        self._state = programs.insert(self._state, state, at)  # type: ignore[arg-type]
        self._unread.append(_Unread(chunk, refill.members, range(rows), 1, False))

    def _prefix_of(self, refill: Refill, shared: int) -> KeyValue:
        """Keys and values of the prefix; groups of one prefix follow one another."""
        name, found = self._prefix
        if found is not None and name == refill.kind.prefix:
            return found
        first = next(self._requests[i] for i in refill.members if i is not None)
        tokens = np.zeros((self._replicas, refill.kind.width.prefix), np.int32)
        tokens[:, :shared] = first.tokens[:shared]
        gate = np.zeros((self._replicas, self._engine.config.num_hidden_layers), np.float32)
        if first.gate is not None:
            gate[:] = first.gate
        kv = programs.read_prefix(
            self._engine.params,
            place(tokens, ("batch", "seq")),
            shared,
            self._routing,
            place(gate, ("batch", "layers")) if self._routed else None,
            config=self._engine.config,
        )
        self._prefix = (refill.kind.prefix, kv)
        return kv

    def _ensure_capacity(self, steps: int) -> None:
        """Make the cache longer if a row could come to its end within so many steps."""
        unread = steps + sum(item.steps for item in self._unread)
        needed = max(
            (row.length + min(row.limit, len(row.ids) + unread) for row in self._rows.values()),
            default=0,
        )
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
            place(stopped, ("slots",)),
            steps,
            stop_when_free,
            **self._static,
            chunk=self._engine.shape.chunk,
        )
        owners = list(self._slots.owners)
        self._unread.append(_Unread(chunk, owners, range(len(owners)), steps, True))

    # What the device did ----------------------------------------------------------------------

    def read(self) -> None:
        """Read what was dispatched, but for the last steps, which run meanwhile."""
        while len(self._unread) > bool(self._engine.shape.ahead):
            self._take(self._unread.popleft())

    def _take(self, item: _Unread) -> None:
        chunk: Chunk = jax.device_get(item.chunk)
        counts = (chunk.tokens >= 0).sum(axis=1)
        touched: list[tuple[int, bool]] = []
        for at, owner in zip(item.slots, item.owners, strict=True):
            row = None if owner is None else self._rows.get(owner)
            if owner is None or row is None:
                continue
            new = slice(int(counts[at]))
            row.ids += chunk.tokens[at, new].tolist()
            if chunk.logprobs is not None:
                row.logprobs += chunk.logprobs[at, new].tolist()
            if chunk.margins is not None:
                row.margins += chunk.margins[at, new].tolist()
            self._counts[1] += int(counts[at])
            if counts[at]:
                touched.append((owner, bool(chunk.done[at])))
        if item.decodes:
            self._counts[2:] += int(chunk.steps), int(chunk.active_steps)
        self._finish(touched)

    def _finish(self, touched: Sequence[tuple[int, bool]]) -> None:
        """Tells which of the rows that have new tokens are finished."""
        ended: dict[int, tuple[list[int], str, StopReason]] = {}
        if self._stops and touched:
            found = self._stops.look([self._rows[i].watch for i, _ in touched])
            for (i, _), seen in zip(touched, found, strict=True):
                cut = self._stops.cut(self._rows[i].ids) if seen else None
                if cut:
                    ended[i] = (*cut, "stop_string")
        whole = [i for i, done in touched if done and i not in ended]
        texts = self._stops.decode([self._rows[i].ids for i in whole])
        for i, text in zip(whole, texts, strict=True):
            ids = self._rows[i].ids
            ended[i] = (ids, text, "end_token" if ids[-1] in self._engine.ends else "length")
        where = {owner: slot for slot, owner in enumerate(self._slots.owners)}
        on_device = dict(touched)
        for i, (ids, text, reason) in ended.items():
            row, slot = self._rows.pop(i), where[i]
            self._slots.release(slot)
            if not on_device[i]:
                self._stopped.add(slot)
            logprobs = tuple(row.logprobs[: len(ids)]) if row.logprobs else None
            margin = min(row.margins[: len(ids)], default=None)
            self.finished.append((i, Completion(tuple(ids), text, reason, logprobs, margin)))
        self._counts[0] += len(ended)

    def take_finished(self) -> Iterator[list[tuple[int, Completion]]]:
        """Hands over what has finished and was not told yet."""
        some, self.finished = self.finished, []
        if some:
            yield some

    def release(self) -> None:
        """Lets go of everything that lies on the device, also where a traceback keeps the run."""
        self._state, self._prefix, self._weights = None, (None, None), self._engine.params
        self._unread.clear()
