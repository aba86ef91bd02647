"""What was done for each request of a benchmark, and what that comes to."""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


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
        prompt_cut: Whether the context was too long and lost its beginning (generation only).
        truncated: Whether a generation reached its token limit.
    """

    task: str | None
    doc_id: int | None
    index: int
    sample: int
    kind: str
    gate: float | None
    tokens: int
    prompt_cut: bool = False
    truncated: bool = False


def gate_histogram(records: Iterable[Record]) -> dict[str, int]:
    """How many requests ran under each gate, smallest gate first."""
    counts = Counter(record.gate for record in records)
    gates = sorted(counts, key=lambda gate: -math.inf if gate is None else gate)
    return {"none" if gate is None else f"{gate:g}": counts[gate] for gate in gates}


def truncation_rate(records: Iterable[Record]) -> float | None:
    """Share of the generations that reached their token limit; ``None`` if there are none."""
    reached = [record.truncated for record in records if record.kind == "generate_until"]
    return sum(reached) / len(reached) if reached else None
