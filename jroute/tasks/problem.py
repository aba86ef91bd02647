"""A problem: a question with a numeric gold answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType


@dataclass(frozen=True)
class Problem:
    """One question and its gold answer.

    Attributes:
        id: Stable name, ``<task>/<split>/<number>``; outcomes are filed under it.
        question: The text a prompt is made from.
        answer: Gold answer as a canonical number, e.g. ``"18"``.
        solution: Reference chain of thought, or ``""`` if there is none.
        labels: Facts about the problem for analysis only (class, template); no controller
            ever sees them.
    """

    id: str
    question: str
    answer: str
    solution: str = ""
    labels: Mapping[str, str | int] = field(default_factory=lambda: MappingProxyType({}))
