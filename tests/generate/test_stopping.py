"""Stop strings in growing text, held against looking at the whole text after every token."""

import numpy as np
import pytest

from jroute.generate.decoding import Decoding
from jroute.generate.requests import Request
from jroute.generate.stopping import Stops, Watch
from jroute.lm import LanguageModel
from tests.generate import dummy
from tests.model.tiny import chat_prompts

SPECIAL = 0  # decodes to nothing


def by_brute_force(tokenizer, ids: list[int], stops, minimum: int) -> tuple[list[int], str] | None:
    """The first count of tokens whose text holds a stop string that ends late enough."""
    early = len(tokenizer.decode(ids[:minimum], skip_special_tokens=True)) if minimum else 0
    for count in range(1, len(ids) + 1):
        text = tokenizer.decode(ids[:count], skip_special_tokens=True)
        spots = [
            at
            for stop in stops
            for at in range(len(text) - len(stop) + 1)
            if text.startswith(stop, at) and at + len(stop) > early
        ]
        if spots:
            return ids[:count], text[: min(spots)]
    return None


@pytest.mark.parametrize("minimum", [0, 6])
def test_random_tokens_in_random_chunks(tiny_lm: LanguageModel, minimum: int) -> None:
    tokenizer, rng = tiny_lm.tokenizer, np.random.default_rng(minimum)
    text = "12+5=17\n#### 17 and a caf\u00e9 for 3\u20ac \U0001f642 each; "
    vocabulary = [*tiny_lm.encode(text), SPECIAL]
    stops = ("7\n##", "\u20ac", "f\u00e9 f", "22", " \U0001f642", "#1#")
    assert any(len(tiny_lm.encode(stop)) > 2 for stop in stops)
    watcher, hits, spanning = Stops(tokenizer, stops, minimum), 0, 0
    for _ in range(150):
        start = int(rng.integers(len(vocabulary)))
        ids = (vocabulary[start:] + rng.choice(vocabulary, 20).tolist())[: int(rng.integers(1, 40))]
        ids = [int(token) for token in ids]
        expected = by_brute_force(tokenizer, ids, stops, minimum)
        watch, cut, read = Watch([]), None, 0
        while read < len(ids) and cut is None:
            step = int(rng.integers(1, 6))
            watch.ids += ids[read : read + step]
            read += step
            (seen,) = watcher.search([watch])
            cut = watcher.cut(watch.ids) if seen else None
        assert cut == expected
        hits += cut is not None
        spanning += cut is not None and tokenizer.decode(cut[0][-1:]) not in stops
    assert hits > 40 and spanning > 10


def test_rows_are_watched_apart(tiny_lm: LanguageModel) -> None:
    watcher = Stops(tiny_lm.tokenizer, ("ab",), 0)
    a, b = tiny_lm.encode("a"), tiny_lm.encode("b")
    one, other = Watch(list(a)), Watch(list(b))
    assert watcher.search([one, other]) == [False, False]
    one.ids += b
    other.ids += a
    assert watcher.search([one, other]) == [True, False]
    assert not Stops(tiny_lm.tokenizer, (), 0)


def test_min_new_tokens(tiny_lm: LanguageModel) -> None:
    prompt = chat_prompts(tiny_lm.tokenizer, 1)
    (whole,) = tiny_lm.generate(prompt, max_new_tokens=32)
    assert (whole.stop_reason, len(whole.tokens)) == ("end_token", 21)
    (same,) = tiny_lm.generate(prompt, max_new_tokens=32, min_new_tokens=20)
    assert same == whole
    (longer,) = tiny_lm.generate(prompt, max_new_tokens=32, min_new_tokens=25)
    assert longer.tokens[:20] == whole.tokens[:20] and len(longer.tokens) >= 25
    assert not set(longer.tokens[:24]) & set(tiny_lm.end_token_ids)
    # "20" stands in the second and in the third line of 15+5=20 / 20-2=18.
    first, later = (
        tiny_lm.generate(prompt, max_new_tokens=32, stop="20", min_new_tokens=minimum)[0]
        for minimum in (0, 7)
    )
    assert (first.text, later.text) == ("15+5=", "15+5=20\n")
    assert later.tokens == whole.tokens[: len(later.tokens)]


def test_the_first_token_can_be_kept_from_ending(tiny_lm: LanguageModel) -> None:
    every = tuple(range(dummy.CONFIG.vocab_size // 2))
    requests = dummy.requests(6, seed=1)
    at_once = dummy.engine(tiny_lm.tokenizer, ends=every).run(requests)
    decoding = Decoding(temperature=1.0, max_new_tokens=96, min_new_tokens=3)
    held = dummy.engine(tiny_lm.tokenizer, ends=every, decoding=decoding).run(
        [request._replace(limit=0) for request in requests]
    )
    assert min(len(completion.tokens) for completion in at_once) == 1
    for completion in held:
        assert len(completion.tokens) >= 3 and not set(completion.tokens[:2]) & set(every)
        assert completion.tokens[-1] in every


def test_a_seed_may_come_of_problem_and_sample() -> None:
    request = Request([5], None, seed=7)
    assert request.row_seed == 7
    others = [
        request._replace(problem="a"),
        request._replace(problem="a", sample=1),
        request._replace(sample=1),
        request._replace(problem="a", seed=8),
    ]
    seeds = [other.row_seed for other in others]
    assert len({7, *seeds}) == 5 and all(0 <= seed < 2**31 for seed in seeds)
