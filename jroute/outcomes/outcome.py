"""Outcomes: the graded completion of one problem under one gate.

Decoding is fixed for a whole experiment, so a (problem, gate, sample) cell is generated once and
looked up from then on (``jroute.outcomes.table``). Everything that changes the meaning of a cell is
in one fingerprint; how a cell was generated is stored beside it and changes nothing.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from jroute.routing.gate import Gate, as_gate
from jroute.tasks.answers import is_correct, parse_answer
from jroute.tasks.problem import Problem
from jroute.tasks.rewards import RewardConfig, reward
from jroute.utils.keys import Keys, keys


@dataclass(frozen=True)
class Provenance:
    """How a cell was generated; not in its fingerprint, so several machines can fill one table.

    Attributes:
        execution: Execution shape (batch width, mesh) as JSON.
        versions: Versions of the libraries as JSON.
        machine: Kind and number of the devices.
        seconds: Wall time since the cells before it finished, shared evenly among the cells that
            finished with it.
    """

    stored_keys: ClassVar[Keys] = keys("execution", "versions", "machine", "seconds")

    execution: str
    versions: str
    machine: str
    seconds: float


@dataclass(frozen=True)
class Outcome:
    """The outcome of one (problem, gate, sample) cell.

    Outcomes are compared without ``logprob``, whose last digits depend on the execution shape, and
    without ``made``.

    Attributes:
        problem_id: The problem's id.
        gate: The gate the prompt was generated under.
        sample: Number of the sample; always 0 in a greedy experiment.
        completion: Generated text, stop string already cut.
        tokens: Number of generated tokens.
        parsed: The answer read from the completion in canonical form, ``""`` if none.
        status: ``ok``, ``no_answer`` or ``truncated``.
        correct: Whether the parsed answer equals the gold one.
        reward: Reward of a learner: exact match in a table; a backend adds the shaping.
        stop_reason: ``end_token``, ``stop_string`` or ``length``.
        logprob: Summed natural-log probability of the generated tokens, if the engine reported it.
        made: How it was generated, if known.
    """

    stored_keys: ClassVar[Keys] = keys(
        "problem_id",
        "gate",
        "sample",
        "completion",
        "tokens",
        "parsed",
        "status",
        "correct",
        "reward",
        "stop_reason",
        "logprob",
        "made",
    )

    problem_id: str
    gate: Gate
    sample: int
    completion: str
    tokens: int
    parsed: str
    status: str
    correct: bool
    reward: float
    stop_reason: str
    logprob: float | None = field(default=None, compare=False)
    made: Provenance | None = field(default=None, compare=False)


MEANING = tuple(item.name for item in dataclasses.fields(Outcome) if item.compare)
"""Fields of an outcome that hold its result; the others record how it was generated."""


@runtime_checkable
class GeneratedText(Protocol):
    """What grading needs of a completion."""

    @property
    def text(self) -> str:
        """Generated text, stop string already cut."""
        ...

    @property
    def tokens(self) -> Sequence[int]:
        """Generated token ids."""
        ...

    @property
    def stop_reason(self) -> str:
        """``end_token``, ``stop_string`` or ``length``."""
        ...


def _log_probability(completion: GeneratedText) -> float | None:
    """Sum of a completion's token log-probabilities, if the engine returned them."""
    logprobs = getattr(completion, "logprobs", None)
    return None if logprobs is None else float(math.fsum(map(float, logprobs)))


def grade(
    problem: Problem,
    gate: Gate,
    completion: GeneratedText,
    *,
    max_tokens: int,
    rewards: RewardConfig | None = None,
    sample: int = 0,
    made: Provenance | None = None,
) -> Outcome:
    """Turn a completion into the outcome of its cell.

    Args:
        problem: The problem that was answered.
        gate: The gate it was answered under.
        completion: As the engine returned it; one that stopped by ``length`` counts as truncated.
        max_tokens: The decoding's limit, which a length penalty is measured against.
        rewards: Optional shaping; exact match alone if not given.
        sample: Number of the sample.
        made: How the completion was generated.
    """
    parsed = parse_answer(completion.text, truncated=completion.stop_reason == "length")
    tokens = len(completion.tokens)
    paid = reward(
        parsed,
        problem.answer,
        tokens=tokens,
        max_tokens=max_tokens,
        config=rewards if rewards is not None else RewardConfig(),
    )
    return Outcome(
        problem_id=problem.id,
        gate=as_gate(gate),
        sample=sample,
        completion=completion.text,
        tokens=tokens,
        parsed=parsed.text,
        status=parsed.status,
        correct=is_correct(parsed, problem.answer),
        reward=paid,
        stop_reason=completion.stop_reason,
        logprob=_log_probability(completion),
        made=made,
    )
