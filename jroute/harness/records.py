"""Records of requests, and their totals."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from jroute.routing.gate import Gate, gate_numbers
from jroute.utils.keys import Keys, keys, restored


@dataclass(frozen=True)
class Record:
    """What the model did for one request of lm-eval.

    Attributes:
        task: The request's task.
        doc_id: Document within the task.
        index: Request within the document (a continuation of a multiple choice).
        sample: Repeat of the request.
        kind: ``generate_until``, ``loglikelihood`` or ``loglikelihood_rolling``.
        gate: Gate it ran under; ``None`` is the model without routing.
        tokens: Tokens generated, or of the text that was scored.
        prompt_tokens: Tokens of the context (generation only).
        prompt_cut: Whether the context was too long and lost its beginning (generation only).
        truncated: Whether a generation reached its token limit.
        foreign: Whether the prompt has another form than those that the arm learned from.
    """

    stored_keys: ClassVar[Keys] = keys(
        "task",
        "doc_id",
        "index",
        "sample",
        "kind",
        "gate",
        "tokens",
        "prompt_tokens",
        "prompt_cut",
        "truncated",
        "foreign",
    )

    task: str | None
    doc_id: int | None
    index: int
    sample: int
    kind: str
    gate: Gate | None
    tokens: int
    prompt_tokens: int = 0
    prompt_cut: bool = False
    truncated: bool = False
    foreign: bool = False

    @classmethod
    def from_json(cls, payload: dict[str, Any]) -> "Record":
        """Restore what ``stored`` made of a record, after JSON."""
        values = restored(cls, payload)
        gate = values.pop("gate")
        return cls(**values, gate=tuple(gate) if isinstance(gate, list) else gate)

    def for_request(self, task: str | None, doc_id: int | None, index: int) -> "Record":
        """Return the same record for another request with the same arguments."""
        return dataclasses.replace(self, task=task, doc_id=doc_id, index=index)


def gate_histogram(records: Iterable[Record]) -> dict[str, int]:
    """Return how many requests ran under each gate, smallest first; ``none`` is no routing."""
    counts = Counter(record.gate for record in records)
    gates = sorted(counts, key=lambda gate: (gate is not None, gate_numbers(gate)))
    return {gate_name(gate): counts[gate] for gate in gates}


def gate_name(gate: Gate | None) -> str:
    """Return a gate as text; ``none`` is no routing."""
    return ",".join(f"{dim:g}" for dim in gate_numbers(gate)) or "none"


def mean_gate(records: Iterable[Record]) -> float | None:
    """Return the mean over requests and over a gate's numbers; ``None`` without requests.

    A request without routing counts as gate 0.
    """
    means = [sum(n) / len(n) if (n := gate_numbers(record.gate)) else 0.0 for record in records]
    return sum(means) / len(means) if means else None


def truncation_rate(records: Iterable[Record]) -> float | None:
    """Return the share of generations that reached their token limit; ``None`` without any."""
    truncated = [record.truncated for record in records if record.kind == "generate_until"]
    return sum(truncated) / len(truncated) if truncated else None


def totals(records: Iterable[Record]) -> dict[str, Any]:
    """Return counts over requests, for a results file."""
    records = list(records)
    generated = [record for record in records if record.kind == "generate_until"]
    return {
        "requests": len(records),
        "gate_histogram": gate_histogram(records),
        "generated_tokens": sum(record.tokens for record in generated),
        "prompt_tokens": sum(record.prompt_tokens for record in generated),
        "scored_tokens": sum(r.tokens for r in records if r.kind != "generate_until"),
        "truncation_rate": truncation_rate(records),
        "prompts_cut": sum(record.prompt_cut for record in records),
        "foreign_prompts": sum(record.foreign for record in records),
    }
