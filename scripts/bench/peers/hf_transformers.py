"""transformers' ``generate`` on torch, and the reference that tokens are checked against.

Prompts are padded on the left, the cache is the dynamic one, which grows with the text;
attention is the library's choice (scaled dot-product). A row cannot leave a batch, so every batch
runs to its longest completion. ``continuous`` uses the library's own continuous batching instead.
"""

import os
from typing import Any

import torch
import transformers
from worker import Rows, padded, serve, static_groups, timed, versions

loaded: dict[str, Any] = {}

PAGE = 32
"""Tokens in a block of the cache of ``continuous``."""


def load(model: str, dtype: str, threads: int) -> dict[str, Any]:
    """Read the model, onto the GPU where the machine has one."""
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    lm: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype))
    # No token ends a row: every side generates the same number of tokens.
    lm.generation_config = transformers.GenerationConfig(
        do_sample=False, use_cache=True, pad_token_id=0, eos_token_id=None
    )
    loaded.update(model=lm.to(device).eval(), device=device)
    return {
        "versions": versions("torch", "transformers", "numpy"),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "attention": lm.config._attn_implementation,
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
    }


@torch.inference_mode()
def _complete(prompts: Rows, new: list[int]) -> Rows:
    rows, mask = padded(prompts, left=True)
    ids = torch.tensor(rows, device=loaded["device"])
    ones = torch.tensor(mask, device=loaded["device"])
    out = loaded["model"].generate(ids, attention_mask=ones, max_new_tokens=max(new))
    return out[:, ids.shape[1] :].tolist()


def generate(prompts: Rows, new: list[int], batch: int) -> dict[str, Any]:
    """Generate in static batches of ``batch`` rows."""
    return timed(_complete, prompts, new, static_groups(prompts, batch))


def continuous(prompts: Rows, new: list[int], batch: int) -> dict[str, Any]:
    """Generate by the library's continuous batching: all rows are handed in at once."""
    from transformers import ContinuousBatchingConfig

    longest = max(len(row) + n for row, n in zip(prompts, new, strict=True))
    # Left to itself the library takes most of the machine's free memory for its cache.
    config = ContinuousBatchingConfig(
        page_size=PAGE,
        num_blocks=batch * (-(-longest // PAGE) + 1),
        max_batch_tokens=max(batch, longest),
        max_requests_per_batch=batch,
    )

    def run(rows: Rows, wanted: list[int]) -> Rows:
        model = loaded["model"]
        with model.continuous_batching_context_manager(
            continuous_batching_config=config
        ) as manager:
            names = [
                manager.add_request(row, max_new_tokens=n)
                for row, n in zip(rows, wanted, strict=True)
            ]
            completed: dict[str, list[int]] = {}
            while len(completed) < len(names):
                result = manager.get_result(timeout=1)
                if result is not None and result.is_finished():
                    completed[result.request_id] = list(result.generated_tokens)
        return [completed[name] for name in names]

    return timed(run, prompts, new, [range(len(prompts))]) | {"row_steps": None}


@torch.inference_mode()
def check(prompts: Rows, completions: Rows, tokens_at_once: int = 4096) -> dict[str, Any]:
    """Measure how far each token is from being the greedy choice of the reference.

    Every completion is read in a single forward pass, so a token is judged by the tokens that
    really precede it. Rows are padded on the right, where causal attention does not see the
    padding.

    Returns:
        ``gaps``: per row the pairs (position, gap) of tokens that are not the reference's choice;
        the gap is the difference of the two logits over the standard deviation of all logits there.
    """
    model, device = loaded["model"], loaded["device"]
    gaps: list[list[tuple[int, float]]] = [[] for _ in prompts]
    total = [len(p) + len(c) for p, c in zip(prompts, completions, strict=True)]
    order = sorted(range(len(prompts)), key=lambda i: -total[i])
    while order:
        width = total[order[0]]
        group, order = _split(order, max(1, tokens_at_once // width))
        rows = [prompts[i] + completions[i] for i in group]
        ids = torch.tensor(padded(rows, left=False)[0], device=device)
        logits = model(input_ids=ids, use_cache=False).logits.float()
        for i, row in zip(group, logits, strict=True):
            targets = torch.tensor(completions[i], device=device)
            own = row[len(prompts[i]) - 1 : total[i] - 1]
            chosen = own.gather(1, targets[:, None])[:, 0]
            gap = ((own.max(dim=1).values - chosen) / own.std(dim=1)).tolist()
            gaps[i] = [(at, value) for at, value in enumerate(gap) if value > 0]
    return {"gaps": gaps}


def _split(order: list[int], count: int) -> tuple[list[int], list[int]]:
    return order[:count], order[count:]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    serve({"load": load, "generate": generate, "continuous": continuous, "check": check})
