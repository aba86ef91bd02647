"""Foreign prompts: those of another form than an arm learned from."""

import re
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance

from jroute.tasks.special_tokens import without_marks
from jroute.utils.errors import UserError

_PLACEHOLDER = "\u27e6question\u27e7"
_WORD = re.compile(r"\w+")
_SHOWN = 60


class ForeignPrompts:
    """The foreign prompts that an arm has met, and its refusal of them.

    Args:
        arm: Name of the arm.
        render: The prompt of a question, in the form that the arm learned from; ``None`` for an arm
            that does not read prompts, to which no prompt is foreign.
        allowed: Whether the arm may choose gates for foreign prompts.
    """

    def __init__(self, arm: str, render: Callable[[str], str] | None, *, allowed: bool):
        self._arm = arm
        self._render = render
        self._allowed = allowed
        self._foreign: set[str] = set()

    def __contains__(self, context: str) -> bool:
        return context in self._foreign

    def check(self, requests: Sequence[Instance], known: Container[str]) -> None:
        """Note the foreign prompts among requests.

        Args:
            requests: Requests of lm-eval.
            known: Contexts that need no check.

        Raises:
            UserError: A prompt is foreign, and foreign prompts are not allowed.
        """
        if self._render is None:
            return
        for request in requests:
            context = request.args[0]
            if not context or context in self._foreign or context in known:
                continue
            if is_foreign(context, request.doc, self._render):
                if not self._allowed:
                    raise UserError(
                        f"arm {self._arm} learned from prompts in another format than those of "
                        f"{request.task_name} (its first ends in {context[-_SHOWN:]!r}); train on "
                        "that prompt (prompt.benchmark), or force it with --force_template"
                    )
                self._foreign.add(context)


def is_foreign(context: str, doc: Any, render: Callable[[str], str]) -> bool:
    """Return whether a prompt does not have the form that ``render`` gives to questions.

    A prompt is not foreign if ``render`` makes it of a field of its document, or of a text whose
    words all occur in the document. Other wording around the question is foreign, and so are
    examples before it.

    Args:
        context: The prompt.
        doc: Its document, as lm-eval has it.
        render: The prompt of a question.
    """
    context = without_marks(context)
    fields = doc.values() if isinstance(doc, Mapping) else [doc]
    texts = [field for field in fields if isinstance(field, str)]
    if any(
        without_marks(render(text)) == context
        for text in texts
        if text.strip() and text.strip() in context
    ):
        return False
    around = render(_PLACEHOLDER).split(_PLACEHOLDER)
    places = len(around) - 1
    spare = len(context) - sum(map(len, around))
    if not places or spare < 0 or spare % places:
        return True
    question = context[len(around[0]) : len(around[0]) + spare // places]
    words = set(_WORD.findall(" ".join(texts)))
    return question.join(around) != context or not set(_WORD.findall(question)) <= words
