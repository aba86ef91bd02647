"""Models of every family answer through the adapter as lm-eval's own Hugging Face model does."""

import shutil
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing

import jroute
from jroute.checkpoint.conversion import convert
from jroute.harness.model import JaxLM
from jroute.model.families import FAMILIES
from jroute.tasks.tokenizer import load_tokenizer
from tests.harness.lm_eval_requests import assert_scores_equal, generate, requests
from tests.model.tiny import ASSET

QUESTION = "Tom has 5 pens. Mia has 3 pens. How many pens do Tom and Mia have?"
TEXTS = ["Tom has 5 pens.", "Ünïcode — 数学 🙂 and\n\nlines", f"{QUESTION} {QUESTION}"]


@pytest.mark.parametrize(
    ("family", "tied"),
    [("qwen3", False), ("qwen2", False), ("qwen2", True), ("llama", False), ("llama", True)],
)
def test_a_model_with_random_weights_answers_as_the_reference(tmp_path, family, tied) -> None:
    """Of another shape than the bundled one, with two end tokens and its own output matrix."""
    torch.manual_seed(0)
    shape = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 20}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied}
    limits = {"vocab_size": 483, "max_position_embeddings": 96, "initializer_range": 0.3}
    of_family = getattr(transformers, FAMILIES[family].transformers_class)
    rope = {"rope_type": "default", "rope_theta": 1e4}
    config = of_family.config_class(
        **shape, **heads, **limits, eos_token_id=2, rope_parameters=rope
    )
    weights = of_family(config).eval()
    with torch.no_grad():  # transformers starts them at 0, as if they were not there
        for name, bias in weights.named_parameters():
            if name.endswith("bias"):
                bias.normal_(0, 0.5)
    source = tmp_path / "hf"
    weights.save_pretrained(source)
    shutil.copy(ASSET / "generation_config.json", source)
    weights.generation_config = transformers.GenerationConfig.from_pretrained(source)
    tokenizer = load_tokenizer(ASSET)
    if family == "llama":  # whose tokenizers begin every text with a token
        tokenizer.bos_token = start = "<|im_start|>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[start, "$A"], special_tokens=[(start, tokenizer.bos_token_id)]
        )
    tokenizer.save_pretrained(source)
    convert(str(source), tmp_path / "model")
    ours = JaxLM(jroute.load(tmp_path / "model"), slots=4)
    assert ours.tok_encode("5") == tokenizer("5")["input_ids"]
    assert (len(ours.tok_encode("5")) == 2) == (family == "llama")
    options = {"tokenizer": tokenizer, "batch_size": 1}
    hf = cast(Any, HFLM)(pretrained=weights, backend="causal", **options)
    texts = [QUESTION, TEXTS[1], "5"]
    cases = [(text, {"until": until, "max_gen_toks": 16}) for text in texts for until in ([], "e")]
    answers = generate(hf, *cases)
    assert generate(ours, *cases) == answers and len({*answers}) >= 4
    pairs = [
        *((text, answers[2 * i][:3]) for i, text in enumerate(texts)),
        ("", "Tom"),
        ("5", " 数"),
    ]
    scored = ours.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    assert_scores_equal(scored, hf.loglikelihood(requests("loglikelihood", *pairs)))
    rolling = requests("loglikelihood_rolling", *((text,) for text in TEXTS))
    rolled = ours.loglikelihood_rolling(rolling, disable_tqdm=True)
    np.testing.assert_allclose(rolled, hf.loglikelihood_rolling(rolling), rtol=1e-5, atol=2e-3)
