"""Tiny checkpoints in Hugging Face layout, made without torch."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from converters.hf_config import config_to_hf
from converters.mapping import layout
from jroute.model.config import DecoderConfig
from jroute.model.families import FAMILIES

CONFIG = DecoderConfig(
    vocab_size=29,
    hidden_size=12,
    intermediate_size=20,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=6,
    rms_norm_eps=1e-5,
    rope_theta=5e6,
    tie_word_embeddings=False,
    max_position_embeddings=128,
)
TIED = dataclasses.replace(CONFIG, tie_word_embeddings=True)
CONFIGS = {
    f"{family}, {'tied' if tied else 'untied'}": dataclasses.replace(
        CONFIG, family=family, tie_word_embeddings=tied
    )
    for family in FAMILIES
    for tied in (False, True)
}
"""Every family; ``head_dim`` is nowhere ``hidden_size / num_attention_heads``."""
COMPANIONS = {
    "tokenizer.json": "{}",
    "tokenizer_config.json": '{"chat_template": "{{ messages }}"}',
    "generation_config.json": '{"eos_token_id": [1, 2]}',
    "routing.yaml": "preset: histories\n",
}


def random_tensors(
    config: DecoderConfig, dtype: str = "float32", seed: int = 0
) -> dict[str, np.ndarray]:
    """Random weights under their Hugging Face names, as ``[outputs, inputs]``."""
    rng = np.random.default_rng(seed)
    shapes = {name: e.hf_shape for e in layout(config).values() for name in e.names}
    return {name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def write_source(
    folder: Path, config: DecoderConfig, tensors: dict[str, np.ndarray], shards: int = 1
) -> Path:
    """Writes a checkpoint folder with its companions, in one file or in shards with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
    for name, content in COMPANIONS.items():
        (folder / name).write_text(content)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = list(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
