"""Batched generation on the bundled tiny model, held against transformers and against itself."""

import logging
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jroute.errors import UserError
from jroute.generate.decoding import Completion, Decoding, choose
from jroute.generate.engine import (
    DecodeState,
    Engine,
    EngineConfig,
    Request,
    bucket,
    check_context,
    decode,
    prefill,
)
from jroute.lm import LanguageModel
from jroute.model.qwen3 import forward
from tests.models import chat_prompts, torch_logits

SLOTS, NEW = 8, 32
GATES = (0.0, 0.25, 1.0, 0.5, 0.0, 1.0, 0.75, -0.25)


@pytest.fixture(scope="module")
def prompts(tiny_lm: LanguageModel) -> list[str]:
    return chat_prompts(tiny_lm.tokenizer, SLOTS)


@pytest.fixture(scope="module")
def plain(tiny_lm: LanguageModel, prompts: list[str]) -> list[Completion]:
    """Greedy completions of the plain model."""
    return tiny_lm.generate(prompts, max_new_tokens=NEW, slots=SLOTS)


# Against transformers -------------------------------------------------------------------------


def ragged_prompts(lm: LanguageModel) -> list[list[int]]:
    """Chat prompts, prompts of two turns, and beginnings of prompts of 1 to 64 tokens."""
    whole = [lm.encode(p) for split in ("test", "ood") for p in chat_prompts(lm.tokenizer, 6, split)]
    two_turns = [[*a, *lm.encode("#### 5<|im_end|>\n"), *b] for a, b in zip(whole, whole[1:3])]
    cuts = (1, 2, 7, 18, 31, 32, 33, 40, 47, 50)
    return whole + two_turns + [row[:cut] for row, cut in zip(whole, cuts)]


def torch_greedy(model, rows: list[list[int]], ends: tuple[int, ...]) -> tuple[list, float]:
    """Greedy completions by ``transformers``, and the smallest margin between two best tokens."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=NEW,
        eos_token_id=list(ends),
        pad_token_id=0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    best = torch.stack(out.scores, dim=1).topk(2, dim=-1).values
    margins = (best[..., 0] - best[..., 1]).numpy()
    completions, smallest = [], np.inf
    for row, margin in zip(out.sequences[:, width:].tolist(), margins, strict=True):
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        completions.append(tuple(row[:end]))
        smallest = min(smallest, float(margin[:end].min()))
    return completions, smallest


def test_greedy_tokens_equal_transformers(tiny_lm: LanguageModel, tiny_torch) -> None:
    rows = ragged_prompts(tiny_lm)
    assert {bucket(len(row)) for row in rows} == {32, 64, 128}
    expected, margin = torch_greedy(tiny_torch, rows, tiny_lm.end_token_ids)
    assert margin > 1e-3  # no near-tie that rounding could decide
    told: list[tuple[int, Completion]] = []
    found = tiny_lm.generate(
        rows,
        max_new_tokens=NEW,
        slots=SLOTS,
        finished=lambda indices, completions: told.extend(zip(indices, completions, strict=True)),
    )
    assert [c.tokens for c in found] == expected
    ended = [row[-1] in tiny_lm.end_token_ids for row in expected]
    assert {True, False} <= set(ended)
    assert [c.stop_reason for c in found] == ["end_token" if e else "length" for e in ended]
    assert all(len(c.tokens) == NEW for c, e in zip(found, ended, strict=True) if not e)
    decoded = [tiny_lm.tokenizer.decode(row, skip_special_tokens=True) for row in expected]
    assert [c.text for c in found] == decoded
    assert sorted(i for i, _ in told) == list(range(len(rows)))  # each reported exactly once,
    assert all(found[i] is completion for i, completion in told)  # under its own index


# Rows do not see each other -------------------------------------------------------------------

SAMPLED = Decoding(temperature=1.0, top_p=0.98, max_new_tokens=NEW)


def batch(lm: LanguageModel, rows: dict[int, tuple[list[int], float, int]]) -> dict:
    """Arguments of a prefill with (tokens, gate, seed) in some slots, dummies in the others."""
    tokens, lengths = np.zeros((SLOTS, 64), np.int32), np.zeros(SLOTS, np.int32)
    gate, seeds = np.zeros((SLOTS, lm.config.num_hidden_layers)), np.zeros(SLOTS, np.int32)
    for slot, (ids, g, seed) in rows.items():
        tokens[slot, : len(ids)], lengths[slot] = ids, len(ids)
        gate[slot], seeds[slot] = g, seed
    ends = np.asarray(lm.end_token_ids, np.int32)
    fixed = (seeds, ends, lm.routing, jnp.asarray(gate, jnp.float32))
    return {"tokens": tokens, "lengths": lengths, "fixed": fixed}


def run(lm: LanguageModel, rows: dict[int, tuple[list[int], float, int]]) -> list[DecodeState]:
    """The states after the prefill and after every chunk of decoding, copied from the device."""
    inputs = batch(lm, rows)
    static = {"config": lm.config, "decoding": SAMPLED}
    state = prefill(lm.params, inputs["tokens"], inputs["lengths"], *inputs["fixed"], **static)
    states = [jax.tree.map(np.array, state)]
    while not bool(jnp.all(state.done)):
        state = decode(lm.params, state, *inputs["fixed"], **static, steps=5)
        states.append(jax.tree.map(np.array, state))
    return states


def of_slot(state: DecodeState, slot: int) -> list[np.ndarray]:
    """All that a state holds of one slot, the cache as far as it is filled."""
    length = int(state.lengths[slot])
    cache = [array[slot, :length] for layer in state.cache for array in layer]
    return [*cache, *(np.asarray(array[slot]) for array in state[1:])]


def assert_slots_equal(a: DecodeState, slot_a: int, b: DecodeState, slot_b: int) -> None:
    for x, y in zip(of_slot(a, slot_a), of_slot(b, slot_b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def requests(tiny_lm: LanguageModel, prompts: list[str]) -> list[tuple[list[int], float, int]]:
    """Prompts with gates of all kinds and seeds of their own."""
    encoded = [tiny_lm.encode(prompt) for prompt in prompts]
    return [(ids, gate, 11 * i + 3) for i, (ids, gate) in enumerate(zip(encoded, GATES))]


@pytest.fixture(scope="module")
def together(tiny_lm: LanguageModel, requests) -> list[DecodeState]:
    return run(tiny_lm, dict(enumerate(requests)))


def test_a_row_is_bit_equal_in_another_slot_and_order(tiny_lm, requests, together) -> None:
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    moved = run(tiny_lm, {slot: requests[i] for slot, i in enumerate(order)})
    for one, other in zip(together, moved, strict=True):
        for slot, i in enumerate(order):
            assert_slots_equal(one, i, other, slot)


@pytest.mark.parametrize(("i", "slot"), [(0, 0), (5, 2), (7, 6)])
def test_a_row_is_bit_equal_alone_among_dummies(tiny_lm, requests, together, i, slot) -> None:
    alone = run(tiny_lm, {slot: requests[i]})
    for one, other in zip(together, alone, strict=False):  # alone it may be done sooner
        if not one.done[i]:
            assert_slots_equal(one, i, other, slot)
    assert_slots_equal(together[-1], i, alone[-1], slot)
    dummies = [s for s in range(SLOTS) if s != slot]
    assert all(state.done[dummies].all() for state in alone)


def test_cached_decoding_equals_the_full_forward_at_every_position(
    tiny_lm: LanguageModel, requests, together
) -> None:
    state = together[-1]
    assert state.count.max() > 20
    rows = [
        [*ids, *state.tokens[i, : state.count[i]].tolist()] for i, (ids, *_) in enumerate(requests)
    ]
    lengths = np.array(list(map(len, rows)), np.int32)
    # The last token was generated, not read; everything before it is in the cache.
    np.testing.assert_array_equal(state.lengths, lengths - 1)
    tokens = np.zeros((SLOTS, 96), np.int32)
    for to, row in zip(tokens, rows, strict=True):
        to[: len(row)] = row
    columns = np.arange(96)[None]
    positions = np.where(columns < lengths[:, None], columns, -1).astype(np.int32)
    gates = tiny_lm.gates(GATES, SLOTS)
    read = jax.jit(forward, static_argnums=1)
    kv = read(tiny_lm.params, tiny_lm.config, tokens, positions, routing=tiny_lm.routing, gate=gates).kv
    for i, length in enumerate(state.lengths):
        for layer, cached in enumerate(state.cache):
            for own, whole in zip(cached, kv, strict=True):
                np.testing.assert_allclose(own[i, :length], whole[layer, i, :length], atol=1e-4)
    # Every token is what the row's seed and position draw from the logits of the full forward.
    logits = np.asarray(tiny_lm.logits(rows, GATES))
    for i, (ids, _, seed) in enumerate(requests):
        at = np.arange(len(ids), len(rows[i]), dtype=np.int32)
        drawn = choose(
            jnp.asarray(logits[i, at - 1]), jnp.full(at.shape, seed, jnp.int32), jnp.asarray(at), SAMPLED
        )
        assert drawn.tolist() == rows[i][len(ids) :]


# Gates ----------------------------------------------------------------------------------------


def test_a_mixed_batch_equals_single_gate_runs_row_by_row(
    tiny_lm: LanguageModel, prompts: list[str], plain: list[Completion]
) -> None:
    mixed = tiny_lm.generate(prompts, GATES, max_new_tokens=NEW, slots=SLOTS)
    of_gate = {
        gate: tiny_lm.generate(prompts, gate, max_new_tokens=NEW, slots=SLOTS) for gate in set(GATES)
    }
    assert mixed == [of_gate[gate][i] for i, gate in enumerate(GATES)]
    assert of_gate[0.0] == plain  # gate 0 is the plain model
    differ = sum(a.tokens != b.tokens for a, b in zip(of_gate[1.0], plain, strict=True))
    assert differ >= 3  # and gate 1 is not: three of the eight are of class `three`, one is `two`


def test_a_gate_without_routing_is_refused(tiny_lm: LanguageModel) -> None:
    engine = Engine(tiny_lm.params, tiny_lm.config, tiny_lm.tokenizer, Decoding(), end_token_ids=[2])
    with pytest.raises(UserError, match="no routing"):
        engine.run([Request([5], np.zeros(6, np.float32))])


# Ends -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stop",
    [
        ("\n",),
        ("####",),  # the first token of a problem of class `start`
        ("\n####", "="),  # the one that comes first counts, whatever the order
        ("1", "0\n#", "3\n#### 3", "5-2"),  # some span several tokens
    ],
    ids=repr,
)
def test_stop_strings(tiny_lm, prompts, plain, stop: tuple[str, ...]) -> None:
    found = tiny_lm.generate(prompts, max_new_tokens=NEW, slots=SLOTS, stop=stop)
    for completion, whole in zip(found, plain, strict=True):
        cut = min((whole.text.partition(s)[0] for s in stop), key=len)
        assert completion.text == cut
        if cut == whole.text:
            assert completion == whole
        else:
            assert completion.stop_reason == "stop_string"
            assert completion.tokens == whole.tokens[: len(completion.tokens)]
            assert len(cut) < len(tiny_lm.tokenizer.decode(completion.tokens))
    reasons = Counter(c.stop_reason for c in found)
    assert reasons["stop_string"] >= 2
    if "####" in stop:
        assert [c.text for c in found].count("") == 3


@pytest.mark.parametrize("chunk", [1, 4, 16])
def test_chunks_do_not_change_completions(tiny_lm, prompts, plain, chunk: int) -> None:
    engine = Engine(
        tiny_lm.params,
        tiny_lm.config,
        tiny_lm.tokenizer,
        Decoding(max_new_tokens=NEW, stop=("\n#",)),
        end_token_ids=tiny_lm.end_token_ids,
        shape=EngineConfig(SLOTS, chunk),
    )
    found = engine.run([Request(tiny_lm.encode(prompt), None) for prompt in prompts])
    assert [c.text for c in found] == [c.text.partition("\n#")[0] for c in plain]
    ends_of = [tiny_lm.tokenizer.decode(c.tokens)[len(c.text) :] for c in found]
    reasons = [c.stop_reason for c in found]
    stopped = [e for e, reason in zip(ends_of, reasons, strict=True) if reason == "stop_string"]
    assert len(stopped) == 5
    # The tokens end with the one that completes the stop string, so that their number says what
    # the completion cost and not how often the host looked.
    assert set(stopped) <= {"\n#", "\n##", "\n###", "\n####"}


def test_an_end_token_at_once_and_a_length_limit(tiny_lm, prompts, plain) -> None:
    assert plain[0].stop_reason == "end_token"
    end = plain[0].tokens[-1]
    asked = tiny_lm.encode(prompts[0])
    solved = [*asked, *plain[0].tokens[:-1]]
    at_once, cut = tiny_lm.generate([solved, asked], max_new_tokens=5, slots=SLOTS)
    assert at_once == Completion((end,), "", "end_token")
    assert cut.tokens == plain[0].tokens[:5]
    assert cut.stop_reason == "length"
    assert plain[0].text.startswith(cut.text) and cut.text
    at_once, cut = tiny_lm.generate([solved, asked], max_new_tokens=1, slots=SLOTS)
    assert at_once == Completion((end,), "", "end_token")
    assert (cut.tokens, cut.stop_reason) == (plain[0].tokens[:1], "length")
    # An end token that is the last one allowed still is an end.
    exact = tiny_lm.generate(asked and [asked], max_new_tokens=len(plain[0].tokens), slots=SLOTS)
    assert exact == plain[:1]


def test_a_prompt_must_fit_the_context(tiny_lm: LanguageModel) -> None:
    with pytest.raises(
        UserError, match=r"1000 tokens plus max_new_tokens 25 .* context of 1024 tokens; shorten"
    ):
        tiny_lm.generate([[5], [5] * 1000], max_new_tokens=25)
    with pytest.raises(UserError, match="empty"):
        tiny_lm.generate(["1 + 1", ""])
    check_context(1000, 24, 1024)
    with pytest.raises(UserError):
        check_context(1001, 24, 1024)


@pytest.mark.parametrize(
    ("length", "width"), [(1, 32), (32, 32), (33, 64), (64, 64), (65, 128), (1000, 1024)]
)
def test_buckets(length: int, width: int) -> None:
    assert bucket(length) == width


@pytest.mark.parametrize("shape", [{"slots": 0}, {"chunk": 0}])
def test_engine_config_is_checked(shape: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        EngineConfig(**shape)


# Sampling -------------------------------------------------------------------------------------


def test_sampling_depends_on_the_seed_alone(tiny_lm, prompts) -> None:
    options = {"max_new_tokens": NEW, "slots": SLOTS, "temperature": 1.5}
    seeds = [5, 5, 6, 7, 8, 9, 10, 2**31 - 1]
    rows = [prompts[0], *prompts[:7]]
    first = tiny_lm.generate(rows, seed=seeds, **options)
    assert tiny_lm.generate(rows, seed=seeds, **options) == first
    assert first[0] == first[1]  # the same prompt and seed in another slot
    alone = tiny_lm.generate(rows[3], seed=seeds[3], **options)
    assert alone == [first[3]]
    other = tiny_lm.generate(rows, seed=[s - 1 for s in seeds], **options)
    assert sum(a.tokens != b.tokens for a, b in zip(first, other, strict=True)) >= 6
    # One number counts on from prompt to prompt.
    counted = tiny_lm.generate(rows[:3], seed=5, **options)
    assert counted == tiny_lm.generate(rows[:3], seed=[5, 6, 7], **options)
    assert counted[0] == first[0]


@pytest.mark.parametrize("limit", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-5}], ids=str)
def test_sampling_that_leaves_one_token_is_greedy(tiny_lm, prompts, plain, limit) -> None:
    options = {"temperature": 2.0, "max_new_tokens": NEW, "slots": SLOTS} | limit
    assert tiny_lm.generate(prompts, seed=3, **options) == plain


# Compilation ----------------------------------------------------------------------------------


def test_nothing_compiles_on_a_second_run(tiny_lm, prompts, caplog) -> None:
    options = {"max_new_tokens": 9, "slots": 4, "stop": ("##",)}

    def compiled(*arguments, **changes) -> Counter[str]:
        caplog.clear()
        with jax.log_compiles(), caplog.at_level(logging.WARNING, logger="jax"):
            tiny_lm.generate(*arguments, **options, **changes)
        names = [r.getMessage() for r in caplog.records if "Finished XLA compilation" in r.getMessage()]
        return Counter(name.split()[3] for name in names)

    first = compiled(prompts[:3], [0.0, 0.5, 1.0])
    assert (first["jit(prefill)"], first["jit(decode)"]) == (1, 1)  # two programs per bucket
    assert compiled(prompts[2:8], [1.0, 0.0, 0.25, 0.5, 0.75, -1.0], seed=9) == Counter()
    assert compiled(prompts[4], 0.125) == Counter()


def test_torch_agrees_on_the_prompts_used_here(tiny_lm, tiny_torch, prompts) -> None:
    """A guard of these tests' own oracle: the bundled weights are the same on both sides."""
    row = tiny_lm.encode(prompts[0])
    np.testing.assert_allclose(
        np.asarray(tiny_lm.logits([row]))[0], torch_logits(tiny_torch, row), atol=1e-4
    )
