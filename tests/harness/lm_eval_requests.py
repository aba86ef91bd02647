"""Requests of lm-eval, made by hand."""

from typing import Any

from lm_eval.api.instance import Instance


def requests(kind: Any, *arguments: tuple) -> list[Instance]:
    """Requests as lm-eval builds them, one document each."""
    return [
        Instance(kind, {}, each, 0, metadata=("task", i, 1)) for i, each in enumerate(arguments)
    ]


def chat(lm: Any, question: str) -> str:
    return lm.apply_chat_template([{"role": "user", "content": question}])


def generate(model: Any, *arguments: tuple) -> list[str]:
    return [str(text) for text in model.generate_until(requests("generate_until", *arguments))]
