"""What was done for each request of a benchmark, and what that comes to."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from jroute.routing.gate import Gate
from jroute.utils.keys import Keys, keys, restored


@dataclass(frozen=True)
class Record:
    """What the adapter did for one request of the harness.

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
        foreign: Whether the arm learnt from prompts of another kind, and was forced.
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
    def of(cls, facts: dict[str, Any]) -> "Record":
        """Restore what ``stored`` made of a record, after JSON."""
        values = restored(cls, facts)
        gate = values.pop("gate")
        return cls(**values, gate=tuple(gate) if isinstance(gate, list) else gate)

    def about(self, task: str | None, doc_id: int | None, index: int) -> "Record":
        """The same done for another request."""
        return dataclasses.replace(self, task=task, doc_id=doc_id, index=index)


def gate_histogram(records: Iterable[Record]) -> dict[str, int]:
    """How many requests ran under each gate, smallest gate first; ``none`` is without routing."""
    counts = Counter(record.gate for record in records)
    gates = sorted(counts, key=lambda gate: (gate is not None, _parts(gate)))
    return {gate_name(gate): counts[gate] for gate in gates}


def gate_name(gate: Gate | None) -> str:
    """A gate as text."""
    return ",".join(f"{part:g}" for part in _parts(gate)) or "none"


def mean_gate(records: Iterable[Record]) -> float | None:
    """Mean over requests and over a gate's parts; no routing counts as 0. ``None`` of nothing."""
    means = [sum(p) / len(p) if (p := _parts(record.gate)) else 0.0 for record in records]
    return sum(means) / len(means) if means else None


def truncation_rate(records: Iterable[Record]) -> float | None:
    """Share of the generations that reached their token limit; ``None`` if there are none."""
    reached = [record.truncated for record in records if record.kind == "generate_until"]
    return sum(reached) / len(reached) if reached else None


def totals(records: Iterable[Record]) -> dict[str, Any]:
    """Count for a results file."""
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


def _parts(gate: Gate | None) -> tuple[float, ...]:
    if gate is None:
        return ()
    return gate if isinstance(gate, tuple) else (gate,)
