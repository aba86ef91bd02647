"""Batched generation, held against transformers on the bundled tiny model and against itself.

What does not depend on the model's words is tested on its first two blocks, which compile faster.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Completion, Decoding
from jroute.generate.engine import Engine
from jroute.generate.programs import DecodeState, Rows, decode, prefill
from jroute.generate.requests import FrozenModel, Request
from jroute.generate.sampling import Choice, choose
from jroute.generate.shapes import bucket, check_context
from jroute.lm import LanguageModel
from jroute.model.attention import KeyValue
from jroute.model.decoder import forward, unembed
from jroute.utils.errors import UserError
from tests.model.tiny import chat_prompts

SLOTS, NEW = 8, 32
GATES = (0.0, 0.25, 1.0, 0.5, 0.0, 1.0, 0.75, -0.25)
OPTIONS: dict[str, Any] = {"max_new_tokens": NEW, "slots": SLOTS}


@pytest.fixture(scope="module")
def prompts(tiny_lm: LanguageModel) -> list[str]:
    return chat_prompts(tiny_lm.tokenizer, SLOTS)


@pytest.fixture(scope="module")
def plain(tiny_lm: LanguageModel, prompts: list[str]) -> list[Completion]:
    """Greedy completions of the plain model."""
    return tiny_lm.generate(prompts, **OPTIONS)


@pytest.fixture(scope="module")
def shallow(tiny_lm: LanguageModel) -> LanguageModel:
    """The first two blocks of the tiny model."""
    return LanguageModel(
        {**tiny_lm.params, "blocks": jax.tree.map(lambda x: x[:2], tiny_lm.params["blocks"])},
        dataclasses.replace(tiny_lm.config, num_hidden_layers=2),
        tiny_lm.tokenizer,
        tiny_lm.routing.config,
        end_token_ids=tiny_lm.end_token_ids,
        directory=tiny_lm.directory,
        fingerprint="shallow",
    )


@pytest.fixture(scope="module")
def babble(shallow: LanguageModel, prompts: list[str]) -> list[Completion]:
    """Greedy completions of the shallow model."""
    return shallow.generate(prompts, **OPTIONS)


# Against transformers -------------------------------------------------------------------------


def ragged_prompts(lm: LanguageModel) -> list[list[int]]:
    """Chat prompts, and beginnings of them of 1 to 49 tokens."""
    whole = [
        lm.encode(p) for split in ("test", "ood") for p in chat_prompts(lm.tokenizer, 7, split)
    ]
    cuts = (1, 2, 5, 7, 11, 18, 25, 31, 32, 49)
    return whole + [row[:cut] for row, cut in zip(whole, cuts, strict=False)]


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
    assert {bucket(len(row)) for row in rows} == {16, 32, 64}
    expected, margin = torch_greedy(tiny_torch, rows, tiny_lm.end_token_ids)
    assert margin > 1e-3  # no near-tie that rounding could decide
    reported: list[tuple[int, Completion]] = []
    completions = tiny_lm.generate(
        rows,
        max_new_tokens=NEW,
        slots=SLOTS,
        finished=lambda indices, completions: reported.extend(
            zip(indices, completions, strict=True)
        ),
    )
    assert [c.tokens for c in completions] == expected
    ended = [row[-1] in tiny_lm.end_token_ids for row in expected]
    assert {True, False} <= set(ended)
    assert [c.stop_reason for c in completions] == ["end_token" if e else "length" for e in ended]
    assert all(len(c.tokens) == NEW for c, e in zip(completions, ended, strict=True) if not e)
    decoded = [tiny_lm.tokenizer.decode(row, skip_special_tokens=True) for row in expected]
    assert [c.text for c in completions] == decoded
    assert sorted(i for i, _ in reported) == list(range(len(rows)))  # each reported exactly once,
    assert all(completions[i] is completion for i, completion in reported)  # under its own index


# Rows do not see each other -------------------------------------------------------------------

SAMPLED = Choice(Decoding(temperature=1.0, top_p=0.98).strategies)


def batch(lm: LanguageModel, rows: dict[int, tuple[list[int], float, int]]) -> Rows:
    """Rows with (tokens, gate, seed) in some slots, dummies in the others."""
    tokens, lengths = np.zeros((SLOTS, 64), np.int32), np.zeros(SLOTS, np.int32)
    gate = np.zeros((SLOTS, lm.config.num_hidden_layers), np.float32)
    seeds = np.zeros(SLOTS, np.int32)
    for slot, (ids, g, seed) in rows.items():
        tokens[slot, : len(ids)], lengths[slot] = ids, len(ids)
        gate[slot], seeds[slot] = g, seed
    return Rows(tokens, lengths, seeds, np.full(SLOTS, NEW, np.int32), gate)


class Snapshot(NamedTuple):
    """A state, copied from the device, and all tokens that were told so far."""

    state: DecodeState
    tokens: np.ndarray


def run(lm: LanguageModel, rows: dict[int, tuple[list[int], float, int]]) -> list[Snapshot]:
    """What there is after the prefill and after every chunk of decoding."""
    ends, static = np.asarray(lm.end_token_ids, np.int32), {"config": lm.config, "choice": SAMPLED}
    state, chunk = prefill(lm.params, batch(lm, rows), ends, lm.routing, **static, room=NEW)
    snapshots = [Snapshot(jax.tree.map(np.array, state), np.array(chunk.tokens))]
    while not bool(jnp.all(state.done)):
        state, chunk = decode(lm.params, state, ends, lm.routing, **static, chunk=5)
        tokens = np.concatenate([snapshots[-1].tokens, np.array(chunk.tokens)], axis=1)
        snapshots.append(Snapshot(jax.tree.map(np.array, state), tokens))
    return snapshots


def of_layer(layer: KeyValue, slot: int) -> tuple[np.ndarray, np.ndarray]:
    """Cached keys and values of one slot ``[keys, kv_heads, head_dim]``."""
    key = np.concatenate([block[slot] for block in layer.key], axis=-1)
    value = np.concatenate([block[slot] for block in layer.value], axis=-2)
    return np.moveaxis(key, -1, 0), np.swapaxes(value, 0, 1)


def of_slot(snapshot: Snapshot, slot: int) -> list[Any]:
    """All that is known of one slot, the cache as far as it is filled."""
    state, tokens = snapshot.state, snapshot.tokens[slot]
    length = int(state.lengths[slot])
    cache = [array[:length] for layer in state.cache for array in of_layer(layer, slot)]
    return [tokens[tokens >= 0], *cache, *(np.asarray(array[slot]) for array in state[1:])]


def assert_slots_equal(a: Snapshot, slot_a: int, b: Snapshot, slot_b: int) -> None:
    for x, y in zip(of_slot(a, slot_a), of_slot(b, slot_b), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def requests(shallow: LanguageModel, prompts: list[str]) -> list[tuple[list[int], float, int]]:
    """Prompts with gates of all kinds and seeds of their own."""
    encoded = [shallow.encode(prompt) for prompt in prompts]
    return [(encoded[i], gate, 11 * i + 3) for i, gate in enumerate(GATES)]


@pytest.fixture(scope="module")
def together(shallow: LanguageModel, requests) -> list[Snapshot]:
    return run(shallow, dict(enumerate(requests)))


def test_a_row_is_bit_equal_in_another_slot_and_order(shallow, requests, together) -> None:
    order = [5, 2, 7, 0, 3, 6, 1, 4]
    moved = run(shallow, {slot: requests[i] for slot, i in enumerate(order)})
    for one, other in zip(together, moved, strict=True):
        for slot, i in enumerate(order):
            assert_slots_equal(one, i, other, slot)


@pytest.mark.parametrize(("i", "slot"), [(0, 0), (5, 2), (7, 6)])
def test_a_row_is_bit_equal_alone_among_dummies(shallow, requests, together, i, slot) -> None:
    alone = run(shallow, {slot: requests[i]})
    for one, other in zip(together, alone, strict=False):  # alone it may be done sooner
        if not one.state.done[i]:
            assert_slots_equal(one, i, other, slot)
    assert_slots_equal(together[-1], i, alone[-1], slot)
    dummies = [s for s in range(SLOTS) if s != slot]
    assert all(snapshot.state.done[dummies].all() for snapshot in alone)


def test_cached_decoding_equals_the_full_forward_at_every_position(
    shallow: LanguageModel, requests, together
) -> None:
    state, generated = together[-1]
    assert state.generated.max() == NEW
    rows = [
        [*ids, *generated[i][generated[i] >= 0].tolist()] for i, (ids, *_) in enumerate(requests)
    ]
    lengths = np.array(list(map(len, rows)), np.int32)
    # The last token was chosen, not read; everything before it is in the cache.
    np.testing.assert_array_equal(state.lengths, lengths - 1)
    tokens = np.zeros((SLOTS, 64 + NEW), np.int32)
    for to, row in zip(tokens, rows, strict=True):
        to[: len(row)] = row
    columns = np.arange(64 + NEW)[None]
    positions = np.where(columns < lengths[:, None], columns, -1).astype(np.int32)

    @jax.jit
    def read(params, tokens, positions, gate):
        out = forward(params, shallow.config, tokens, positions, routing=shallow.routing, gate=gate)
        return out.kv, unembed(params, shallow.config, out.hidden)

    kv, logits = jax.tree.map(
        np.asarray, read(shallow.params, tokens, positions, shallow.layer_gates(GATES, SLOTS))
    )
    for i, length in enumerate(state.lengths):
        for layer, cached in enumerate(state.cache):
            for own, whole in zip(of_layer(cached, i), kv, strict=True):
                np.testing.assert_allclose(own[:length], whole[layer, i, :length], atol=1e-4)
    # Every token is what the row's seed and position draw from the logits of the full forward.
    rows_of = np.repeat(np.arange(SLOTS), state.generated)
    at = np.concatenate([np.arange(len(requests[i][0]), n) for i, n in enumerate(lengths)])
    seeds = np.array([seed for *_, seed in requests])[rows_of]
    drawn = jax.jit(choose, static_argnums=3)(
        logits[rows_of, at - 1], seeds.astype(np.int32), at.astype(np.int32), SAMPLED
    )
    np.testing.assert_array_equal(drawn.token, tokens[rows_of, at])


# Gates ----------------------------------------------------------------------------------------


def test_a_mixed_batch_equals_single_gate_runs_row_by_row(
    shallow: LanguageModel, prompts: list[str], babble: list[Completion]
) -> None:
    mixed = shallow.generate(prompts, GATES, **OPTIONS)
    of_gate = {gate: shallow.generate(prompts, gate, **OPTIONS) for gate in set(GATES)}
    assert mixed == [of_gate[gate][i] for i, gate in enumerate(GATES)]
    assert of_gate[0.0] == babble  # gate 0 is the plain model
    differ = sum(a.tokens != b.tokens for a, b in zip(of_gate[1.0], babble, strict=True))
    assert differ >= 6  # and gate 1 is not


def test_gates_of_layers_reach_their_layers(
    shallow: LanguageModel, prompts: list[str], babble: list[Completion]
) -> None:
    first, last = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    gates = np.stack([first, last] * (SLOTS // 2))
    mixed = shallow.generate(prompts, gates, **OPTIONS)
    of_first = shallow.generate(prompts, np.tile(first, (SLOTS, 1)), **OPTIONS)
    of_last = shallow.generate(prompts, np.tile(last, (SLOTS, 1)), **OPTIONS)
    assert mixed == [pair[i % 2] for i, pair in enumerate(zip(of_first, of_last, strict=True))]
    assert len({tuple(map(str, each)) for each in (babble, of_first, of_last)}) == 3


def test_a_gate_without_routing_is_refused(shallow: LanguageModel) -> None:
    model = FrozenModel(shallow.params, shallow.config, shallow.tokenizer, [2])
    engine = Engine(model, Decoding())
    with pytest.raises(UserError, match="no routing"):
        engine.run([Request([5], np.zeros(2, np.float32))])


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
    completions = tiny_lm.generate(prompts, max_new_tokens=NEW, slots=SLOTS, stop=stop)
    for completion, whole in zip(completions, plain, strict=True):
        cut = min((whole.text.partition(s)[0] for s in stop), key=len)
        assert completion.text == cut
        if cut == whole.text:
            assert completion == whole
        else:
            assert completion.stop_reason == "stop_string"
            assert completion.tokens == whole.tokens[: len(completion.tokens)]
            assert len(cut) < len(tiny_lm.tokenizer.decode(completion.tokens))
    reasons = Counter(c.stop_reason for c in completions)
    assert reasons["stop_string"] >= 2
    if "####" in stop:
        assert [c.text for c in completions].count("") == 3


def engine(
    lm: LanguageModel,
    ends: Sequence[int],
    *,
    chunk: int = 16,
    max_new_tokens: int = NEW,
    stop: tuple[str, ...] = (),
) -> Engine:
    return Engine(
        FrozenModel(lm.params, lm.config, lm.tokenizer, ends),
        Decoding(max_new_tokens=max_new_tokens, stop=stop),
        EngineConfig(SLOTS, chunk),
    )


@pytest.mark.parametrize("chunk", [1, 16])
def test_chunks_do_not_change_where_a_completion_stops(tiny_lm, prompts, plain, chunk: int) -> None:
    ask = engine(tiny_lm, tiny_lm.end_token_ids, chunk=chunk, stop=("\n#",))
    completions = ask.run([Request(tiny_lm.encode(prompt), None) for prompt in prompts])
    assert [c.text for c in completions] == [c.text.partition("\n#")[0] for c in plain]
    # The tokens end with the one that completes the stop string: their number says what the
    # completion cost, not how often the host looked.
    tails = [tiny_lm.tokenizer.decode(c.tokens)[len(c.text) :] for c in completions]
    stopped = [c.stop_reason == "stop_string" for c in completions]
    assert stopped == ["\n#" in c.text for c in plain]
    assert {r for r, s in zip(tails, stopped, strict=True) if s} == {"\n####"}


@pytest.mark.parametrize(
    "chunk",
    [
        1,
        16,
    ],
)
def test_the_stop_that_is_complete_first_counts(tiny_lm, prompts, plain, chunk: int) -> None:
    """One stop string begins before another but ends after it."""
    assert plain[0].text.startswith("15+5=20\n20-2=18")
    ask = engine(tiny_lm, tiny_lm.end_token_ids, chunk=chunk, stop=("0-2=", "-"))
    (completion,) = ask.run([Request(tiny_lm.encode(prompts[0]), None)])
    assert completion.text == "15+5=20\n20"
    assert tiny_lm.tokenizer.decode(completion.tokens) == "15+5=20\n20-"


def test_any_of_the_end_tokens_ends_a_completion(shallow, prompts, babble) -> None:
    requests = [Request(shallow.encode(prompt), None) for prompt in prompts]
    whole = [c.tokens for c in babble]
    ends = [whole[4][0], whole[7][2]]
    completions = engine(shallow, ends).run(requests)
    lengths = []
    for completion, tokens in zip(completions, whole, strict=True):
        cut = next((i + 1 for i, token in enumerate(tokens) if token in ends), 0)
        lengths.append(cut)
        if cut:
            assert (completion.tokens, completion.stop_reason) == (tokens[:cut], "end_token")
        else:  # what ended it before is a token like any other now
            assert completion.tokens[: len(tokens)] == tokens
            assert len(completion.tokens) > len(tokens)
    assert lengths == [13, 13, 0, 13, 1, 1, 1, 3]


def test_the_length_limit(shallow, prompts, babble) -> None:
    ids, tokens = shallow.encode(prompts[7]), babble[7].tokens
    for limit in (1, 4):
        assert tokens.index(tokens[limit - 1]) == limit - 1
        # An end token that is the last one allowed still is an end.
        for end, reason in ((482, "length"), (tokens[limit - 1], "end_token")):
            (completion,) = engine(shallow, [end], max_new_tokens=limit).run([Request(ids, None)])
            assert (completion.tokens, completion.stop_reason) == (tokens[:limit], reason)


def test_an_end_token_at_once(tiny_lm, prompts, plain) -> None:
    assert plain[4].stop_reason == "end_token"
    solved = [*tiny_lm.encode(prompts[4]), *plain[4].tokens[:-1]]
    at_once, whole = tiny_lm.generate([solved, tiny_lm.encode(prompts[1])], **OPTIONS)
    assert at_once == Completion(plain[4].tokens[-1:], "", "end_token")
    assert whole == plain[1]


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
    ("length", "width"),
    [
        (1, 16),
        (16, 16),
        (17, 32),
        (32, 32),
        (33, 48),
        (48, 48),
        (49, 64),
        (64, 64),
        (65, 96),
        (97, 128),
        (1000, 1024),
    ],
)
def test_buckets(length: int, width: int) -> None:
    assert bucket(length) == width


@pytest.mark.parametrize("shape", [{"slots": 0}, {"chunk": 0}])
def test_engine_config_is_checked(shape: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        EngineConfig(**shape)


# Sampling -------------------------------------------------------------------------------------


def test_sampling_depends_on_prompt_and_seed_alone(shallow, prompts) -> None:
    options = {**OPTIONS, "temperature": 1.5}
    seeds = [5, 5, 6, 7, 8, 9, 10, 2**31 - 1]
    rows = [prompts[0], *prompts[:7]]
    first = shallow.generate(rows, seed=seeds, **options)
    assert shallow.generate(rows, seed=seeds, **options) == first
    assert first[0] == first[1]  # the same prompt and seed in another slot
    assert shallow.generate(rows[3], seed=seeds[3], **options) == [first[3]]
    backwards = shallow.generate(rows[::-1], seed=seeds[::-1], **options)
    assert backwards[::-1] == first
    other = shallow.generate(rows, seed=[s - 1 for s in seeds], **options)
    assert all(a.tokens != b.tokens for a, b in zip(first, other, strict=True))
    # One number counts on from prompt to prompt.
    counted = shallow.generate(rows[:3], seed=5, **options)
    assert counted == shallow.generate(rows[:3], seed=[5, 6, 7], **options)
    assert counted[0] == first[0]


def test_top_k_of_one_is_greedy(shallow, prompts, babble) -> None:
    assert shallow.generate(prompts, seed=3, temperature=2.0, top_k=1, **OPTIONS) == babble
