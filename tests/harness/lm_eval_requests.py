"""Requests of lm-eval, made by hand."""

from typing import Any

import numpy as np
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


def assert_scores_equal(ours: list, theirs: list) -> None:
    """Log-likelihoods are equal but for rounding, and so is which of them are greedy."""
    np.testing.assert_allclose([o[0] for o in ours], [t[0] for t in theirs], rtol=1e-5, atol=2e-3)
    assert [o[1] for o in ours] == [t[1] for t in theirs]
