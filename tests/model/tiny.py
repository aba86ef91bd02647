"""The bundled tiny model in jroute and in torch, and prompts to ask it."""

from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import PreTrainedTokenizerFast

from jroute.tasks.problem import Split
from jroute.tasks.prompts import PromptConfig, render
from jroute.tasks.synthetic import problems

ASSET = Path(__file__).parent.parent.parent / "jroute" / "assets" / "tiny-gated"


def torch_tiny() -> transformers.Qwen3ForCausalLM:
    """The bundled weights in transformers' own model, float32."""
    torch.set_num_threads(2)
    model = transformers.Qwen3ForCausalLM.from_pretrained(ASSET, dtype=torch.float32)
    return model.eval()


def chat_prompts(
    tokenizer: PreTrainedTokenizerFast, count: int, split: Split = "test"
) -> list[str]:
    """Chat prompts of the first synthetic problems of a split; each is 50 to 64 tokens long."""
    return [render(p.question, PromptConfig(), tokenizer) for p in problems(split, count)]


def torch_logits(model: transformers.Qwen3ForCausalLM, row: list[int]) -> np.ndarray:
    """Logits of one unpadded row ``[seq, vocab]``."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([row])).logits[0].numpy()
