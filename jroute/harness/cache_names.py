"""Names of lm-eval's caches: of answers, one per model and arm, and of prompts, one per suite.

lm-eval keys a cached answer by the request alone and a cached prompt by only some of its inputs;
both would be served to the wrong caller. The names here hash all inputs.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import lm_eval
import numpy as np

from jroute.lm import LanguageModel
from jroute.utils.keys import stored

PROMPT_OPTIONS = (
    "num_fewshot",
    "gen_kwargs",
    "apply_chat_template",
    "fewshot_as_multiturn",
    "system_instruction",
)
"""lm-eval's options that change the prompts and the decoding of a task."""

_DECIDING_PROMPTS = (
    *("seed", "limit", "samples", "gen_kwargs", "num_fewshot", "metadata"),
    *PROMPT_OPTIONS,
)


def answer_cache_name(lm: LanguageModel, **config: Any) -> str:
    """Return the name of a cache of answers: 20 hexadecimal digits of a SHA-256.

    Args:
        lm: The model with its routing.
        **config: Whatever else changes answers: the arm, the seed, limits.
    """
    identity = {
        "model": lm.fingerprint,
        "dtype": str(jax.tree.leaves(dict(lm.params))[0].dtype),
        "routing": [stored(lm.routing.config), array_digest(lm.routing)],
        "ends": lm.end_token_ids,
        **config,
    }
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:20]


def answer_cache_path(prefix: str, arm: str, name: str) -> str:
    """Return the value of ``--use_cache`` for one arm: the user's prefix, the arm, the name."""
    return f"{prefix}-{folder_name(arm)}-{name}"


def prompt_cache_name(
    tasks: Mapping[str, Any], options: Mapping[str, Any], tokenizer_name: str
) -> str:
    """Return the name of a cache of prompts: 16 hexadecimal digits of a SHA-256.

    lm-eval's own names leave out the template of raw prompts, generation arguments, seeds, and the
    data.

    Args:
        tasks: Loaded tasks by name, without groups.
        options: lm-eval's options.
        tokenizer_name: The adapter's, which identifies the chat template and the limits.
    """
    identity = {
        "lm_eval": lm_eval.__version__,
        "tokenizer": tokenizer_name,
        "options": [(name, options.get(name)) for name in _DECIDING_PROMPTS],
        "tasks": {
            name: [
                repr(task.dump_config()),
                {split: getattr(docs, "_fingerprint", "") for split, docs in task.dataset.items()},
            ]
            for name, task in tasks.items()
        },
    }
    return hashlib.sha256(repr(identity).encode()).hexdigest()[:16]


def array_digest(tree: Any) -> str:
    """Return the SHA-256 of a tree of arrays: their paths, dtypes, shapes and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(jax.device_get(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def folder_name(arm: str) -> str:
    """Return an arm's name as that of a folder or file."""
    return arm.replace(":", "_")
