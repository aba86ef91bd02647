r"""Filters for lm-evaluation-harness: how answers are read out of completions here.

Importing this registers ``jroute_answer``, training's own reading, and ``jroute_boxed``, the last
``\boxed{}`` alone. They are registered beside lm-eval's filters under their own names.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm_eval.api.filter import Filter
from lm_eval.api.registry import register_filter

from jroute.tasks.answers import boxed_answer, parse_answer

INVALID = "[invalid]"
"""The answer of lm-eval's own filters where they find nothing."""


@register_filter("jroute_answer")
class AnswerFilter(Filter):
    """Read answers as training does: canonical numbers, or ``[invalid]``."""

    def apply(self, resps: Iterable[Any], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """Replace every response of every document by its answer."""
        return [[self._answer(text) for text in texts] for texts in resps]

    @staticmethod
    def _answer(text: str) -> str:
        parsed = parse_answer(str(text), truncated=getattr(text, "truncated", False))
        return parsed.text or INVALID


@register_filter("jroute_boxed")
class BoxedFilter(Filter):
    r"""Read the last balanced ``\boxed{}``: its number if it holds a number, else its content."""

    def apply(self, resps: Iterable[Any], docs: Sequence[Mapping[str, Any]]) -> list[list[str]]:
        """Replace every response of every document by the content of its last box."""
        return [[boxed_answer(str(text)) or INVALID for text in texts] for texts in resps]
