"""Few-shot examples that prompts begin with are read once, and nothing else changes."""

import numpy as np
import pytest

from jroute.generate import programs
from jroute.lm import LanguageModel
from jroute.utils.errors import UserError
from tests.model.tiny import chat_prompts

OPTIONS = {"max_new_tokens": 24, "slots": 4, "logprobs": "raw", "margins": True}


@pytest.fixture(scope="module")
def rows(tiny_lm: LanguageModel) -> tuple[int, list[list[int]]]:
    """Prompts after two solved examples, and how many tokens those are."""
    *shots, one, two, three, four, five = map(tiny_lm.encode, chat_prompts(tiny_lm.tokenizer, 7))
    answer = tiny_lm.encode("2+2=4\n#### 4<|im_end|>\n")
    header = [token for shot in shots for token in (*shot, *answer)]
    return len(header), [[*header, *row] for row in (one, two, three, four, five)]


@pytest.mark.parametrize("gated", [False, True], ids=["plain", "routed"])
def test_completions_are_those_of_the_plain_path(tiny_lm, rows, gated, monkeypatch) -> None:
    shared, prompts = rows
    gates = [0.0, 0.5, 1.0, 0.5, 0.0] if gated else None
    reads, read = [], programs.read_prefix
    monkeypatch.setattr(
        programs, "read_prefix", lambda *a, **k: reads.append(a[1].shape) or read(*a, **k)
    )
    plain = tiny_lm.generate(prompts, gates, **OPTIONS)
    assert not reads
    completions = tiny_lm.generate(prompts, gates, shared=shared, **OPTIONS)
    assert len(reads) == (3 if gated else 1)  # once for each gate
    assert min(completion.margin for completion in plain) > 1e-4  # no near-tie
    for one, other in zip(plain, completions, strict=True):
        assert (one.tokens, one.text, one.stop_reason) == (
            other.tokens,
            other.text,
            other.stop_reason,
        )
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=2e-5)
    assert len({completion.tokens for completion in completions}) >= 4


def test_what_is_shared_may_differ_from_prompt_to_prompt(tiny_lm, rows) -> None:
    shared, prompts = rows
    counts = [shared, 0, 17, shared, 10_000]  # the last token of a prompt is always its own
    plain = tiny_lm.generate(prompts, 1.0, **OPTIONS)
    completions = tiny_lm.generate(prompts, 1.0, shared=counts, **OPTIONS)
    assert [c.tokens for c in completions] == [c.tokens for c in plain]
    # Rows that say they share what they do not have in common are read on their own.
    other = [[5, 6, 7, *row] for row in prompts[:2]] + [[8, 9, 7, *row] for row in prompts[:2]]
    as_told = tiny_lm.generate(other, shared=3, **OPTIONS)
    assert [c.tokens for c in as_told] == [c.tokens for c in tiny_lm.generate(other, **OPTIONS)]


def test_wrong_counts_are_told(tiny_lm, rows) -> None:
    for wrong in ([1, 2], -1, [-1] * 5):
        with pytest.raises(UserError, match="shared must be"):
            tiny_lm.generate(rows[1], shared=wrong, **OPTIONS)
