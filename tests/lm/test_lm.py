"""The Python face: shapes of batches and gates, loading, routing, errors."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import jroute
from jroute.checkpoint.conversion import convert
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Completion, Decoding
from jroute.lm import LanguageModel
from jroute.routing.config import RoutingConfig
from jroute.routing.presets import preset_names
from jroute.utils.errors import UserError
from tests.model.tiny import ASSET, chat_prompts, torch_logits

LAYERS, VOCAB = 6, 483


@pytest.fixture(scope="module")
def rows(tiny_lm: LanguageModel) -> list[list[int]]:
    """Six rows of different lengths: as many as the model has layers, to tell the axes apart."""
    whole = [tiny_lm.encode(prompt) for prompt in chat_prompts(tiny_lm.tokenizer, LAYERS)]
    cuts = (40, 1, 33, 17, 2, 39)
    return [row[:cut] for row, cut in zip(whole, cuts, strict=True)]


@pytest.fixture(scope="module")
def plain(tiny_lm: LanguageModel, rows: list[list[int]]) -> np.ndarray:
    return np.asarray(tiny_lm.logits(rows))


# Logits ---------------------------------------------------------------------------------------


def test_ragged_rows_equal_transformers(tiny_torch, rows, plain) -> None:
    assert plain.shape == (LAYERS, 40, VOCAB)
    assert plain.dtype == np.float32
    for row, logits in zip(rows, plain, strict=True):
        np.testing.assert_allclose(logits[: len(row)], torch_logits(tiny_torch, row), atol=1e-4)


def test_padding_may_stand_on_either_side_or_inside_an_array(tiny_lm, rows, plain) -> None:
    right, left = np.full((LAYERS, 40), -1), np.full((LAYERS, 40), -1)
    for i, row in enumerate(rows):
        right[i, : len(row)], left[i, 40 - len(row) :] = row, row
    np.testing.assert_array_equal(tiny_lm.logits(right), plain)
    padded = np.asarray(tiny_lm.logits(jnp.asarray(left)))
    for i, row in enumerate(rows):
        np.testing.assert_allclose(padded[i, 40 - len(row) :], plain[i, : len(row)], atol=1e-5)


@pytest.mark.parametrize(
    ("token_ids", "message"),
    [
        ([], "no tokens"),
        ([[1, 2], []], "no tokens"),
        ([[1, VOCAB]], "token id 483 is outside the vocabulary of 483"),
        ([[1] * 1025], "1025 tokens .* context of 1024"),
        ([[-1, -1]], "empty"),
    ],
    ids=["no rows", "an empty row", "unknown token", "too long", "padding only"],
)
def test_bad_token_ids_are_told(tiny_lm: LanguageModel, token_ids, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_lm.logits(token_ids)


# Gates ----------------------------------------------------------------------------------------


def test_a_number_a_row_and_a_matrix_are_the_same_gate(tiny_lm, rows, plain) -> None:
    gated = np.asarray(tiny_lm.logits(rows, 0.5))
    assert gated.shape == plain.shape
    for same in (np.float32(0.5), [0.5] * LAYERS, np.full((LAYERS, LAYERS), 0.5), jnp.float32(0.5)):
        np.testing.assert_array_equal(tiny_lm.logits(rows, same), gated)
    assert np.abs(gated - plain).max() > 0.1


def test_one_number_per_prompt_goes_to_its_row(tiny_lm, rows, plain) -> None:
    gates = [0.0, 1.0, 0.5, 0.0, 0.25, -0.5]
    mixed = np.asarray(tiny_lm.logits(rows, gates))
    for i, (gate, row) in enumerate(zip(gates, rows, strict=True)):
        of_gate = np.asarray(tiny_lm.logits(rows, gate))
        np.testing.assert_array_equal(mixed[i, : len(row)], of_gate[i, : len(row)])
        same = np.array_equal(mixed[i, : len(row)], plain[i, : len(row)])
        assert same == (gate == 0.0)  # bit for bit the plain model, and only where the gate is 0


def test_a_matrix_is_prompts_by_layers(tiny_lm, rows) -> None:
    gates = np.zeros((LAYERS, LAYERS))
    gates[0, 2] = 1.0
    _, metrics = tiny_lm.logits(rows, gates, metrics=True)
    change = np.array(metrics.change)[:, 0]
    assert change.shape == (LAYERS, LAYERS)  # layers, batch
    assert change[2, 0] > 0.01
    change[2, 0] = 0.0
    assert (change == 0.0).all()


@pytest.mark.parametrize(
    ("gate", "message"),
    [
        ([0.5] * 5, r"shape \(5,\)"),
        (np.zeros((LAYERS, 5)), r"shape \(6, 5\)"),
        (np.zeros((5, LAYERS)), r"shape \(5, 6\)"),
        (np.zeros((LAYERS, 1)), r"shape \(6, 1\)"),
        (np.zeros((1, LAYERS, LAYERS)), r"shape \(1, 6, 6\)"),
        (float("nan"), "not finite"),
        ([0.0, 0.5, np.inf, 0, 0, 0], "not finite"),
    ],
    ids=str,
)
def test_bad_gates_are_told(tiny_lm: LanguageModel, rows, gate, message: str) -> None:
    with pytest.raises(UserError, match=message):
        tiny_lm.logits(rows, gate)
    with pytest.raises(UserError, match=message):
        tiny_lm.generate(rows, gate)
    with pytest.raises(UserError, match=message):
        tiny_lm.loglikelihood([(row, [1]) for row in rows], gate)


def test_metrics_come_with_the_logits(tiny_lm, rows, plain) -> None:
    logits, metrics = tiny_lm.logits(rows, [0.0, 1.0] * 3, metrics=True)
    np.testing.assert_allclose(logits[0], plain[0], atol=1e-5)
    assert metrics.rms.shape == metrics.dominance.shape == (LAYERS, 1, LAYERS, 4)
    for each in (metrics.diversity, metrics.effective_streams, metrics.change, metrics.cosine):
        assert each.shape == (LAYERS, 1, LAYERS)
    assert (metrics.change[..., ::2] == 0).all()
    np.testing.assert_allclose(metrics.cosine[..., ::2], 1.0, atol=1e-6)
    assert (metrics.change[..., 1::2] > 0.01).all()
    # Streams are matched to the trunk's norm token by token, so every stream weighs the same.
    np.testing.assert_allclose(metrics.dominance, 0.25, atol=1e-3)
    np.testing.assert_allclose(metrics.effective_streams, 4.0, atol=1e-2)
    with pytest.raises(UserError, match="metrics need a gate"):
        tiny_lm.logits(rows, metrics=True)


# Generation -----------------------------------------------------------------------------------


def test_prompts_may_be_text_texts_or_token_ids(tiny_lm: LanguageModel) -> None:
    texts = chat_prompts(tiny_lm.tokenizer, 3)
    options: dict[str, Any] = {"max_new_tokens": 32, "slots": 8}
    completions = tiny_lm.generate(texts, **options)
    assert [type(completion) for completion in completions] == [Completion] * 3
    assert tiny_lm.generate([tiny_lm.encode(text) for text in texts], **options) == completions
    assert tiny_lm.generate(texts[1], **options) == completions[1:2]
    assert tiny_lm.generate([], **options) == []


def test_text_is_encoded_as_it_stands(tiny_lm: LanguageModel) -> None:
    assert tiny_lm.encode("<|im_start|>user\n")[0] == 1
    assert tiny_lm.encode("<|im_end|>") == [2]
    assert tiny_lm.encode("7") == tiny_lm.encode("a7")[1:]  # nothing is put before or after
    assert tiny_lm.encode("") == []


# Loading --------------------------------------------------------------------------------------


def test_attributes(tiny_lm: LanguageModel, tiny_directory: Path) -> None:
    assert tiny_lm.context == 1024
    assert tiny_lm.end_token_ids == (2, 0)
    assert tiny_lm.directory == tiny_directory
    manifest = json.loads((tiny_directory / "manifest.json").read_text())
    assert tiny_lm.fingerprint == manifest["fingerprint"]


HISTORIES = ("delay(1)", "attention", "mlp")
PERSISTENT = ("persistent",) * 3


def test_routing_by_name_path_configuration_or_default(tiny_directory, tmp_path: Path) -> None:
    assert {"histories", "mvp"} < set(preset_names())
    own = tmp_path / "own.yaml"
    own.write_text("streams: [delay(2)]\noperator: softmax\ndiagonal: 2.0\nsites: [1, 4]\n")
    for routing, streams in (
        ("histories", HISTORIES),
        ("mvp", PERSISTENT),
        (str(own), ("delay(2)",)),
    ):
        assert jroute.load(tiny_directory, routing=routing).routing.config.streams == streams
    lm = jroute.load(tiny_directory, routing=str(own))
    assert lm.routing.sites.tolist() == [False, True, False, False, True, False]
    np.testing.assert_array_equal(lm.layer_gates(0.5, 1), [[0, 0.5, 0, 0, 0.5, 0]])
    config = RoutingConfig(streams=("copies",))
    assert jroute.load(tiny_directory, routing=config).routing.config is config


def test_unknown_routing_is_told_with_the_presets(tiny_directory, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'historys'.*presets are attention_mlp_balance, .*mvp"):
        jroute.load(tiny_directory, routing="historys")
    with pytest.raises(UserError, match=r"none\.yaml does not exist.*histories.*mvp"):
        jroute.load(tiny_directory, routing=str(tmp_path / "none.yaml"))
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("streams: [delay(1)]\nsites: [6]\n")
    with pytest.raises(UserError, match="names '6', but the model has blocks 0 to 5"):
        jroute.load(tiny_directory, routing=str(wrong))


def converted(tmp_path: Path, name: str, change) -> LanguageModel:
    """The tiny model with its companion files changed before the conversion."""
    source = tmp_path / f"{name}-hf"
    shutil.copytree(ASSET, source)
    change(source)
    convert(str(source), tmp_path / name)
    return jroute.load(tmp_path / name)


def edit(path: Path, **fields) -> None:
    """Changes fields of a JSON file; ``None`` removes one."""
    content = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_stored_routing_and_end_tokens_are_found_where_they_are(tmp_path: Path) -> None:
    def own_files(source: Path) -> None:
        (source / "routing.yaml").write_text("streams: [delay(3)]\n")
        edit(source / "generation_config.json", eos_token_id=7)

    lm = converted(tmp_path, "own", own_files)
    assert lm.routing.config.streams == ("delay(3)",)
    assert lm.end_token_ids == (7,)
    assert jroute.load(lm.directory, routing="mvp").routing.config.streams == PERSISTENT

    def bare(source: Path) -> None:
        (source / "routing.yaml").unlink()
        (source / "generation_config.json").unlink()
        edit(source / "config.json", eos_token_id=[9, 8])

    lm = converted(tmp_path, "bare", bare)
    assert lm.routing.config.streams == HISTORIES
    assert lm.end_token_ids == (9, 8)

    def of_tokenizer(source: Path) -> None:
        (source / "generation_config.json").unlink()
        edit(source / "config.json", eos_token_id=None)

    assert converted(tmp_path, "tokenizer", of_tokenizer).end_token_ids == (2,)

    def nowhere(source: Path) -> None:
        of_tokenizer(source)
        edit(source / "tokenizer_config.json", eos_token=None)

    with pytest.raises(UserError, match="names no end token; add eos_token_id"):
        converted(tmp_path, "nowhere", nowhere)


def test_what_is_no_model_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model directory .*nowhere; make one with .*convert"):
        jroute.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"Hugging Face folder.*jroute\.convert --source"):
        jroute.load(ASSET)
    with pytest.raises(UserError, match="not a finished jroute model directory"):
        jroute.load(tmp_path)


def test_bfloat16_is_near_and_gate_zero_is_exact_in_it(tiny_directory, rows, plain) -> None:
    lm = jroute.load(tiny_directory, dtype="bfloat16")
    logits = np.asarray(lm.logits(rows))
    assert logits.dtype == np.float32
    real = np.concatenate([(logits - plain)[i, : len(row)].ravel() for i, row in enumerate(rows)])
    assert 0 < np.abs(real).mean() < 0.2
    mixed = np.asarray(lm.logits(rows, [0.0, 0.5] * 3))
    for i, row in enumerate(rows):
        same = np.array_equal(mixed[i, : len(row)], logits[i, : len(row)])
        assert same == (i % 2 == 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 2**31}, "seed must be one number"),
        ({"seed": [1, 2, 3]}, "one for each of the 2 prompts"),
        ({"slots": 0}, "at least 1"),
        ({"chunk": 0}, "at least 1"),
    ],
)
def test_generation_options_that_make_no_sense_are_refused(tiny_lm, options, message):
    with pytest.raises(UserError, match=message):
        tiny_lm.generate(["a", "b"], max_new_tokens=1, **options)


def test_a_field_of_a_configuration_replaces_its_value(tiny_lm: LanguageModel) -> None:
    decoding, engine = Decoding(max_new_tokens=8, stop=("9",)), EngineConfig(slots=8, chunk=4)
    expected = tiny_lm.generate("1 + 1 = ", max_new_tokens=8, stop="9", slots=8, chunk=4)
    assert tiny_lm.generate("1 + 1 = ", decoding=decoding, engine=engine) == expected
    longer = tiny_lm.generate("1 + 1 = ", decoding=decoding, engine=engine, stop=(), chunk=2)
    assert longer == tiny_lm.generate("1 + 1 = ", max_new_tokens=8, slots=8)
    unknown: dict[str, Any] = {"temprature": 1.0}
    with pytest.raises(TypeError, match="no option temprature; its options are temperature, top_k"):
        tiny_lm.generate("1 + 1 = ", **unknown)


@pytest.mark.parametrize("wrong", [-1, 483, 10**6])
def test_ids_outside_the_vocabulary_are_refused(tiny_lm, wrong):
    message = f"token id {wrong} is outside the vocabulary of 483"
    with pytest.raises(UserError, match=message):
        tiny_lm.generate([[5, wrong, 7]], max_new_tokens=1)
    with pytest.raises(UserError, match=message):
        tiny_lm.loglikelihood([([5], [wrong])])
    if wrong > 0:
        with pytest.raises(UserError, match=message):
            tiny_lm.logits([[5, wrong]])


def test_one_stop_string_is_one_stop_string(tiny_lm):
    question = "Tom has 5 pens. Then Tom gets 3 pens. How many pens does Tom have at first?"
    turn = [{"role": "user", "content": question}]
    prompt = tiny_lm.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    as_text, as_list = (tiny_lm.generate(prompt, stop=stop) for stop in ("##", ["##"]))
    assert as_text == as_list and as_text[0].stop_reason == "stop_string"


def test_a_flat_list_is_no_batch(tiny_lm):
    with pytest.raises(UserError, match="list of non-empty rows"):
        tiny_lm.logits([1, 2, 3])
