"""A problem: a question with a numeric gold answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

Split = Literal["train", "validation", "test", "ood"]
"""A split of a task; ``ood`` is out of distribution."""


@dataclass(frozen=True)
class Problem:
    """One question and its gold answer.

    Attributes:
        id: Stable name, ``<task>/<split>/<number>``, under which outcomes are stored.
        question: The text to make a prompt of.
        answer: Gold answer as a canonical number, e.g. ``"18"``.
        solution: Reference chain of thought; ``""`` if unknown.
        labels: Properties for analysis only (class, template); no controller sees them.
    """

    id: str
    question: str
    answer: str
    solution: str = ""
    labels: Mapping[str, str | int] = field(default_factory=lambda: MappingProxyType({}))
