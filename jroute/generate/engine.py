"""Continuous batching: a fixed number of slots, refilled while the device runs on.

A slot whose row is finished takes the next request, so that short rows do not wait for long ones.
All shapes are known before a run (``Engine.programs``), and at a fixed shape the tokens of a row
depend on that row alone: not on its slot, its neighbours, or when it came. (On a GPU the length of
the cache, which neighbours can increase, is part of the shape.) Under ``jax.set_mesh`` the slots
lie on the mesh's ``data`` axis.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing

from jroute.distributed.mesh import num_replicas
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Completion, Decoding
from jroute.generate.memory import check_memory, plan_batch
from jroute.generate.requests import FrozenModel, Progress, Request, any_gated
from jroute.generate.run import EngineRun
from jroute.generate.sampling import Choice, Logprobs
from jroute.generate.shapes import BatchPlan, Program, check_context, check_divisible
from jroute.utils.errors import UserError


class Engine:
    """Completes requests under one fixed decoding.

    Args:
        model: The model.
        decoding: The decoding of all requests.
        config: The execution shape.
        logprobs: Log-probabilities to return: ``raw``, of the model's own distribution, or
            ``truncated``, of the one drawn from (after temperature, top-k, top-p, min-p).
        margins: Return the smallest margin of each completion.
    """

    def __init__(
        self,
        model: FrozenModel,
        decoding: Decoding,
        config: EngineConfig | None = None,
        *,
        logprobs: Logprobs | None = None,
        margins: bool = False,
    ):
        self.model = model
        self.decoding = decoding
        self.config = config or EngineConfig()
        self.choice = Choice(decoding.strategies, decoding.min_new_tokens, logprobs, margins)

    def plan(self, requests: Sequence[Request]) -> BatchPlan:
        """Plan the shapes of a run.

        Raises:
            UserError: A prompt does not fit the context, a gate has no routing, or the slots do
                not fit the mesh or its memory.
        """
        for request in requests:
            self._check(request)
        check_divisible(self.config.slots, num_replicas())
        model = self.model
        prompts = [
            (len(r.tokens), r.prefix_length, r.max_new_tokens(self.decoding)) for r in requests
        ]
        streams = model.routing.config.size if model.routing and any_gated(requests) else 0
        plan, estimate = plan_batch(
            prompts, self.config, model.params, model.config, routed_streams=streams
        )
        check_memory(estimate, plan.slots)
        return plan

    def _check(self, request: Request) -> None:
        max_new_tokens = self.decoding.max_new_tokens
        if not 0 <= request.limit <= max_new_tokens or request.shared < 0:
            raise UserError(
                f"a request has limit {request.limit} and shared {request.shared}; neither may "
                f"be negative, and the limit may not pass max_new_tokens, {max_new_tokens}"
            )
        check_context(
            len(request.tokens),
            request.max_new_tokens(self.decoding),
            self.model.config.max_position_embeddings,
        )
        if request.gate is not None and self.model.routing is None:
            raise UserError(
                "a gate was given, but no routing: load the model with one to use a gate"
            )

    def programs(self, requests: Sequence[Request]) -> tuple[Program, ...]:
        """List every program that completing these requests may compile.

        Caches are listed to their full length, which rows that end early never need.
        """
        if not requests:
            return ()
        return self.plan(requests).programs(chunk=self.config.chunk, unroll=self.config.unroll)

    def stream(
        self,
        requests: Sequence[Request],
        *,
        progress: Callable[[Progress], None] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """Complete requests, and yield each with its index as it finishes.

        Closing the iterator, or an exception of any kind, frees the device.

        Args:
            requests: What to complete.
            progress: Called at the start and after every look at the device.

        Raises:
            NotFiniteError: The logits of a row are not finite.
            UserError: See ``plan``.
        """
        plan = self.plan(requests) if requests else None

        def one_by_one() -> Iterator[tuple[int, Completion]]:
            with closing(self._batches(requests, plan, progress)) as batches:
                for batch in batches:
                    yield from batch

        return one_by_one()

    def run(
        self,
        requests: Sequence[Request],
        *,
        finished: Callable[[list[int], list[Completion]], None] | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> list[Completion]:
        """Complete every request, in the order given.

        Args:
            requests: What to complete.
            finished: Called with the indices and completions of requests as they finish; also if
                the run ends by an exception or Ctrl-C, with those that finished before.
            progress: As for ``stream``.

        Raises:
            NotFiniteError: The logits of a row are not finite.
            UserError: See ``plan``.
        """
        completions: dict[int, Completion] = {}
        plan = self.plan(requests) if requests else None
        with closing(self._batches(requests, plan, progress)) as batches:
            for batch in batches:
                completions.update(batch)
                if finished:
                    finished([i for i, _ in batch], [completion for _, completion in batch])
        return [completions[i] for i in range(len(requests))]

    def _batches(
        self,
        requests: Sequence[Request],
        plan: BatchPlan | None,
        progress: Callable[[Progress], None] | None,
    ) -> Generator[list[tuple[int, Completion]], None, None]:
        """Yield non-empty batches of requests as they finish."""
        if plan is None:
            return
        run = EngineRun(self.model, self.decoding, self.config, self.choice, requests, plan)
        try:
            if progress:
                progress(run.progress)
            while run.unfinished:
                run.dispatch()
                run.read()
                if progress:
                    progress(run.progress)
                if batch := run.take_finished():
                    yield batch
        except GeneratorExit:
            raise
        except BaseException:
            run.release()
            if batch := run.take_finished():  # those that finished before
                yield batch
            raise
        finally:
            run.release()
