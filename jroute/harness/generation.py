"""Generation requests of lm-eval: the repeat and the seed of each, and calls of the engine."""

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from lm_eval.api.instance import Instance
from lm_eval.api.model import hash_args

from jroute.generate.sampling import hash_text
from jroute.harness.gen_kwargs import GenerationArguments, ResponseText
from jroute.harness.records import Record
from jroute.lm import LanguageModel


@dataclass
class GenerationRequest:
    """A request with its answer and its record.

    Attributes:
        instance: lm-eval's request.
        sample: How many equal requests came before it.
        seed: Seed of its sampling, by its prompt and its repeat alone.
        text: The answer, once it is there.
        record: What the model did for it, once it has.
    """

    instance: Instance
    sample: int
    seed: int
    text: ResponseText | None = None
    record: Record | None = None

    @property
    def context(self) -> str:
        """The prompt, as lm-eval renders it."""
        return self.instance.args[0]

    @property
    def gen_kwargs(self) -> Mapping[str, Any]:
        """lm-eval's generation arguments."""
        return cast(tuple[str, Mapping[str, Any]], self.instance.args)[1]


def number_repeats(instances: Sequence[Instance], seed: int) -> list[GenerationRequest]:
    """Return requests with their repeats and seeds.

    Args:
        instances: lm-eval's requests.
        seed: Seed of all sampling.
    """
    repeats: Counter[str] = Counter()
    requests = []
    for instance in instances:
        key = hash_args("generate_until", instance.args)
        sample = repeats[key]
        repeats[key] += 1
        row_seed = hash_text(f"{seed}/{sample}/{instance.args[0]}")
        requests.append(GenerationRequest(instance, sample, row_seed))
    return requests


def group_by_arguments(
    requests: Sequence[GenerationRequest],
    parse: Callable[[Mapping[str, Any]], GenerationArguments],
) -> dict[GenerationArguments, list[GenerationRequest]]:
    """Return requests by their generation arguments; each group is one call of the engine."""
    groups: dict[GenerationArguments, list[GenerationRequest]] = {}
    for request in requests:
        groups.setdefault(parse(request.gen_kwargs), []).append(request)
    return groups


def ending_at(lm: LanguageModel, token_ids: Sequence[int]) -> LanguageModel:
    """Return the model, which ends completions at these tokens as well."""
    if set(token_ids) <= set(lm.end_token_ids):
        return lm
    other = copy.copy(lm)
    other.end_token_ids = tuple(dict.fromkeys((*lm.end_token_ids, *token_ids)))
    return other


@contextmanager
def timed(model: Any) -> Iterator[None]:
    """Add the time that the block takes to a model's ``seconds``."""
    started = time.perf_counter()
    try:
        yield
    finally:
        model.seconds += time.perf_counter() - started
