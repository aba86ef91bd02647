"""Log-likelihoods, held against torch's log-softmax."""

import numpy as np
import pytest
import torch

from jroute.generate.scoring import token_scores
from jroute.lm import LanguageModel
from jroute.utils.errors import UserError
from tests.model.tiny import chat_prompts, torch_logits

Pair = tuple[list[int], list[int]]


@pytest.fixture(scope="module")
def pairs(tiny_lm: LanguageModel, tiny_torch) -> list[Pair]:
    """Prompts with the torch model's own greedy continuation, with one token of it changed, and
    pieces of text cut anywhere; two buckets (32 and 64 tokens), more pairs than slots.
    """
    rng = np.random.default_rng(0)
    cases: list[Pair] = []
    for prompt in chat_prompts(tiny_lm.tokenizer, 3):
        context = tiny_lm.encode(prompt)
        out = tiny_torch.generate(
            input_ids=torch.tensor([context]),
            attention_mask=torch.ones((1, len(context)), dtype=torch.long),
            do_sample=False,
            max_new_tokens=64 - len(context),
            eos_token_id=list(tiny_lm.end_token_ids),
            pad_token_id=0,
        )
        own = out[0, len(context) :].tolist()
        changed = list(own)
        at = rng.integers(len(own))
        changed[at] = (own[at] + 1) % tiny_lm.config.vocab_size
        cut = int(rng.integers(1, len(context)))
        cases += [(context, own), (context, changed), (context[:cut], context[cut:])]
    return [*cases, ([7], [9]), (cases[0][0], cases[0][1][:1])]


def by_torch(model, pair: Pair) -> tuple[float, bool]:
    context, continuation = pair
    logits = torch.tensor(torch_logits(model, [*context, *continuation]))
    at = torch.arange(len(context), len(context) + len(continuation))
    scores = logits.double().log_softmax(-1)[at - 1]
    chosen = torch.tensor(continuation)
    total = scores[torch.arange(len(chosen)), chosen].sum()
    return float(total), bool((scores.argmax(-1) == chosen).all())


def test_loglikelihood_equals_torch(tiny_lm: LanguageModel, tiny_torch, pairs) -> None:
    expected = [by_torch(tiny_torch, pair) for pair in pairs]
    flags = [greedy for _, greedy in expected]
    assert flags[:-2] == [True, False, False] * 3 and flags[-1]
    scores = tiny_lm.loglikelihood(pairs, slots=4)
    assert [greedy for _, greedy in scores] == flags
    for (total, _), (right, _) in zip(scores, expected, strict=True):
        assert total == pytest.approx(right, abs=1e-4, rel=1e-5)


def test_routed_loglikelihood_equals_that_of_the_routed_logits(tiny_lm, pairs) -> None:
    gates = np.linspace(-0.25, 1, len(pairs))
    gates[3] = 0.0
    likelihoods = tiny_lm.loglikelihood(pairs, gates, slots=4)
    logits = tiny_lm.logits([[*a, *b] for a, b in pairs], gates)
    for row, (context, continuation), (total, greedy) in zip(
        logits, pairs, likelihoods, strict=True
    ):
        at = np.arange(len(context), len(context) + len(continuation))
        scores = torch.tensor(np.array(row)[at - 1]).double().log_softmax(-1)
        chosen = torch.tensor(continuation)
        assert total == pytest.approx(float(scores[range(len(at)), chosen].sum()), abs=1e-4)
        assert greedy == bool((scores.argmax(-1) == chosen).all())
    plain = tiny_lm.loglikelihood(pairs, slots=4)
    assert likelihoods[3] == plain[3]
    assert sum(abs(a - b) > 0.1 for (a, _), (b, _) in zip(likelihoods, plain, strict=True)) >= 5


def test_token_scores_leave_out_padding_and_the_first_token(
    tiny_lm: LanguageModel, tiny_torch
) -> None:
    row = [*tiny_lm.encode("<|im_start|>assistant\n"), *tiny_lm.encode("7+5=12\n12-4=8\n####")]
    tokens = np.full((4, 32), 3, np.int32)
    lengths = np.array([len(row), 9, 1, 0], np.int32)
    for to, length in zip(tokens, lengths, strict=True):
        to[:length] = row[:length]
    scores, greedy = token_scores(
        tiny_lm.params, tokens, lengths, None, None, config=tiny_lm.config
    )
    logits = torch.tensor(torch_logits(tiny_torch, row)).double()
    right = logits.log_softmax(-1)[range(len(row) - 1), row[1:]].numpy()
    best = logits.argmax(-1).numpy()[:-1] == row[1:]
    assert best.any() and not best.all()
    for i, length in enumerate(lengths):
        real = max(length - 1, 0)
        np.testing.assert_allclose(scores[i, 1 : real + 1], right[:real], atol=1e-4)
        np.testing.assert_array_equal(greedy[i, 1 : real + 1], best[:real])
        assert scores[i, 0] == 0 and greedy[i, 0]
        assert (scores[i, real + 1 :] == 0).all() and greedy[i, real + 1 :].all()


def test_bad_pairs_are_told(tiny_lm: LanguageModel) -> None:
    for pair in (([], [1]), ([1], [])):
        with pytest.raises(UserError, match="at least one context token and one continuation"):
            tiny_lm.loglikelihood([([1], [2]), pair])
    with pytest.raises(UserError, match="context of 1024 tokens"):
        tiny_lm.loglikelihood([([1] * 1000, [2] * 26)])
    with pytest.raises(UserError, match=r"shape \(3,\)"):
        tiny_lm.loglikelihood([([1], [2])] * 2, [0.0, 0.5, 1.0])
    assert tiny_lm.loglikelihood([]) == []
