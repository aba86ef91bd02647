"""Logits that are not finite stop the engine, which names the row and where they began."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jroute.controller.features import FeatureConfig, raw_features
from jroute.distributed.mesh import make_mesh, shardings
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Completion, Decoding
from jroute.generate.engine import Engine
from jroute.generate.finite import NotFiniteError
from jroute.generate.requests import FrozenModel, Request
from jroute.generate.sampling import Choice, choose
from jroute.generate.scoring import score_pairs
from jroute.model.params import init_params, logical_axes
from jroute.routing.mixing import Routing
from tests.generate import dummy

# Blocks enough to tell them apart; untied, so that a broken token breaks only rows that read it.
CONFIG = replace(dummy.CONFIG, num_hidden_layers=3, tie_word_embeddings=False)
RARE = 40
SHAPE = EngineConfig(slots=4, chunk=4)


@pytest.fixture(scope="module")
def params() -> dict[str, Any]:
    return init_params(CONFIG, jax.random.key(5))


def damaged(params: dict[str, Any], *path: str, at: Any, value: float) -> dict[str, Any]:
    """The parameters with one number changed."""
    flat = dict(params)
    if len(path) == 1:
        flat[path[0]] = params[path[0]].at[at].set(value)
    else:
        flat[path[0]] = damaged(params[path[0]], *path[1:], at=at, value=value)
    return flat


def engine(
    tiny_lm, params: dict[str, Any], decoding: Decoding | None = None, **more: Any
) -> Engine:
    routing = Routing.create(dummy.ROUTING, CONFIG.num_hidden_layers)
    model = FrozenModel(params, CONFIG, tiny_lm.tokenizer, (3,), routing)
    return Engine(model, decoding or Decoding(max_new_tokens=6), SHAPE, **more)


def request(*tokens: int, gate: float | None = None) -> Request:
    gates = None if gate is None else np.full(CONFIG.num_hidden_layers, gate, np.float32)
    return Request(tokens, gates, seed=7)


GOOD = [request(5, 6), request(8, 9, 10), request(11), request(12, 13)]


@pytest.fixture(scope="module")
def whole(tiny_lm, params) -> list[Completion]:
    """What the undamaged model answers."""
    return engine(tiny_lm, params).run(GOOD)


# The choice of a token -------------------------------------------------------------------------

DECODINGS = {
    "greedy": Decoding(),
    "sampled": Decoding(temperature=0.7),
    "top-k": Decoding(temperature=0.7, top_k=3),
    "top-p": Decoding(temperature=0.7, top_p=0.5),
    "min-p": Decoding(temperature=0.7, min_p=0.2),
    "all": Decoding(temperature=2.0, top_k=4, top_p=0.9, min_p=0.1),
}


@pytest.mark.parametrize("decoding", DECODINGS.values(), ids=DECODINGS)
def test_every_choice_knows_what_is_not_finite(decoding: Decoding) -> None:
    logits = np.tile(np.linspace(-4, 4, 9, dtype=np.float32), (7, 1))
    logits[1, 2] = np.nan
    logits[2, 2] = np.inf
    logits[3] = -np.inf
    logits[4] = np.nan
    logits[5, 2] = -np.inf  # a token that is never drawn
    logits[6] = 0.0
    seeds = jnp.arange(7)
    chosen = choose(jnp.asarray(logits), seeds, seeds, Choice(decoding.strategies))
    np.testing.assert_array_equal(chosen.finite, [True, False, False, False, False, True, True])
    assert int(chosen.token.min()) >= 0 and int(chosen.token.max()) < 9


def test_the_first_of_the_largest_is_chosen_as_by_argmax() -> None:
    logits = jax.random.randint(jax.random.key(0), (64, 33), -3, 4).astype(jnp.float32)
    seeds = jnp.arange(64)
    chosen = choose(logits, seeds, seeds, Choice())
    np.testing.assert_array_equal(chosen.token, jnp.argmax(logits, axis=-1))


def test_tokens_that_must_not_end_yet_are_no_error() -> None:
    logits, seeds = jnp.zeros((1, 9)), jnp.zeros(1, jnp.int32)
    ends = jnp.array([4])
    chosen = choose(logits, seeds, seeds, Choice(minimum=2), generated=seeds, ends=ends)
    assert bool(chosen.finite[0])


# Where it began --------------------------------------------------------------------------------

PLACES = {
    "embedding": (("embed_tokens",), (RARE, 1), np.nan, "the embedding at position 2"),
    "attention": (("blocks", "attention", "v_proj"), (1, 0), np.nan, "the attention of block 1"),
    "MLP": (("blocks", "mlp", "down_proj"), (2, 0), np.inf, "the MLP of block 2"),
    "norm": (("final_norm",), (3,), np.nan, "the final norm"),
    "unembedding": (("lm_head",), (3, 9), np.nan, "the unembedding"),
    "overflow": (("blocks", "attention", "q_proj"), (0, 3), 1e25, "the attention of block 0"),
}


@pytest.mark.parametrize(("path", "at", "value", "place"), PLACES.values(), ids=PLACES)
def test_the_place_is_named(tiny_lm, params, path, at, value, place) -> None:
    broken = damaged(params, *path, at=at, value=value)
    with pytest.raises(NotFiniteError, match=f"position 3, at gate 0: they begin in {place}") as e:
        engine(tiny_lm, broken).run([request(4, 5, RARE, 6)])
    assert str(e.value).startswith("the logits of prompt 0 are not finite")


def test_the_row_is_named_and_what_had_finished_is_kept(tiny_lm, params, whole) -> None:
    broken = damaged(params, "embed_tokens", at=RARE, value=np.nan)
    kept: dict[int, Completion] = {}
    requests = [*GOOD, request(9, RARE), *GOOD]
    with pytest.raises(NotFiniteError, match=r"prompt 4 .* the embedding at position 1") as error:
        engine(tiny_lm, broken).run(
            requests, finished=lambda indices, made: kept.update(zip(indices, made, strict=True))
        )
    assert error.value.row == 4
    assert kept and all(completion == whole[i] for i, completion in kept.items())


def test_a_step_of_decoding_is_named_by_its_position(tiny_lm, params, whole) -> None:
    second = whole[1].tokens[1]
    assert second not in (*GOOD[1].tokens, whole[1].tokens[0])
    broken = damaged(params, "embed_tokens", at=second, value=np.inf)
    with pytest.raises(NotFiniteError, match="prompt 0 are not finite at position 4, at gate 0"):
        engine(tiny_lm, broken).run(GOOD[1:2])
    with pytest.raises(NotFiniteError, match="the embedding at position 4"):
        engine(tiny_lm, broken, Decoding(temperature=1e-3, max_new_tokens=6)).run(GOOD[1:2])


def test_a_gate_that_overflows_is_named(tiny_lm, params) -> None:
    requests = [request(4, 5, gate=0.5), request(4, 5, 6, gate=1e30), request(4, gate=0.0)]
    with pytest.raises(
        NotFiniteError, match=r"prompt 1 .* at gate 1e\+30: .* block 1.*; give a gate"
    ):
        engine(tiny_lm, params).run(requests)
    plain = engine(tiny_lm, params).run([requests[2]._replace(gate=None)])
    assert engine(tiny_lm, params).run(requests[2:]) == plain


# What must not stop it -------------------------------------------------------------------------


def test_padding_and_finished_rows_do_not_count(tiny_lm, params, whole) -> None:
    last = whole[3].tokens[0]  # of a row of one token: read only after it is finished
    assert last not in (*GOOD[3].tokens, *GOOD[0].tokens, *whole[0].tokens)
    broken = damaged(params, "embed_tokens", at=last, value=np.nan)
    long, short = engine(tiny_lm, broken).run([GOOD[0], GOOD[3]._replace(limit=1)])
    assert long == whole[0] and short.tokens == (last,)


def test_a_stop_string_before_it_ends_the_row(tiny_lm, params, whole) -> None:
    first, second = whole[1].tokens[:2]
    stop = tiny_lm.tokenizer.decode([first])
    broken = damaged(params, "embed_tokens", at=second, value=np.nan)
    (completion,) = engine(tiny_lm, broken, Decoding(max_new_tokens=6, stop=(stop,))).run(GOOD[1:2])
    assert completion.stop_reason == "stop_string" and completion.tokens == (first,)


# Other paths -----------------------------------------------------------------------------------


def test_on_a_mesh(tiny_lm, params, whole) -> None:
    mesh = make_mesh(2, 2, 1)
    with jax.set_mesh(mesh):
        broken = damaged(params, "blocks", "attention", "v_proj", at=(1, 0), value=np.nan)
        placed = jax.device_put(broken, shardings(logical_axes(CONFIG), broken, mesh))
        with pytest.raises(NotFiniteError, match=r"prompt 0 .* the attention of block 1 at posi"):
            engine(tiny_lm, placed).run(GOOD)


def test_likelihoods_name_the_pair(tiny_lm, params) -> None:
    pairs = [([5, 6], [7]), ([5], [6, RARE, 8]), ([9], [10])]
    broken = damaged(params, "embed_tokens", at=RARE, value=np.nan)
    model = engine(tiny_lm, params).model
    scores = score_pairs(model, pairs, None, slots=2)
    assert all(np.isfinite(score) for score, _ in scores)
    with pytest.raises(
        NotFiniteError, match=r"pair 1 .* gate 0: .* the embedding at position 2"
    ) as error:
        score_pairs(model._replace(params=broken), pairs, None, slots=2)
    assert error.value.row == 1


def test_features_name_the_prompt(params) -> None:
    config = FeatureConfig(depths=(0.5, 1.0), counts=False, streams=False)
    prompts = [[5, 6, 7], [5, RARE], [8]]
    assert np.isfinite(raw_features(params, CONFIG, prompts, config, slots=2).hidden).all()
    broken = damaged(params, "embed_tokens", at=RARE, value=np.nan)
    with pytest.raises(NotFiniteError, match=r"features of prompt 1 are not finite at gate 0"):
        raw_features(broken, CONFIG, prompts, config, slots=2)
