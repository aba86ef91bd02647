"""The names of tensors in checkpoints that were not saved by transformers' own classes."""

import re

WRAPPERS = r"(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|module)\.)+"
"""What PyTorch's compiler, ``DataParallel``, FSDP and activation checkpointing add to names."""

_BUFFERS = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|original_inv_freq|cos_cached|sin_cached)")
"""Constants that follow from the configuration, which some releases store beside the weights."""

_INNER = ("embed_tokens.", "layers.", "norm.")
"""How names begin in a checkpoint of the decoder without its output layer."""


def canonical(name: str) -> str | None:
    """Return what a release calls a tensor that is stored as ``name``; ``None`` if it is no weight.

    PyTorch's wrappers add parts to names; a decoder saved without its output layer, as embedding
    models are, has names without ``model.``.
    """
    # Parts of a name begin at its start or after a dot.
    plain = re.sub(rf"(?<![^.]){WRAPPERS}", "", name)
    if _BUFFERS.fullmatch(plain):
        return None
    return f"model.{plain}" if plain.startswith(_INNER) else plain
