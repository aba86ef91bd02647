"""Write random weights of a published shape in the published layout, for tests at size.

    python scripts/random_model.py --like DIR_WITH_config.json --out runs/random-4b

The folder looks like a release: ``config.json``, ``generation_config.json`` and tokenizer files as
published, weights in bfloat16 shards with an index. The values mean nothing, but they are of a
trained model's size: projections have variance 1 / fan-in, norms lie near 1, and biases near 0.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, get_args

import ml_dtypes  # noqa: F401 - teaches numpy the name "bfloat16"
import numpy as np
from tqdm import tqdm

from converters.hf_config import TAKE_RELEASED, config_from_hf
from converters.mapping import layout
from jroute.checkpoint import has_tokenizer
from jroute.checkpoint.conversion import Dtype
from jroute.checkpoint.export import new_folder, write_shards
from jroute.checkpoint.stored_tensors import published_order
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
from jroute.utils.json_files import read_json

TOKENIZER_FILES = (
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
)

PLAIN_CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
"""A chat template without thinking."""

PERIOD = 2**22 - 3
"""Length of the block of random numbers that all tensors are cut from.

It is a prime: whatever their width, no two rows of a tensor begin at the same place of it.
"""


def write_random(
    like: Path,
    out: Path,
    *,
    seed: int = 0,
    layers: int | None = None,
    shard_bytes: int = 2 * 10**9,
    dtype: Dtype = "bfloat16",
    tokenizer: Path | None = None,
    plain_chatml: bool = False,
) -> list[Path]:
    """Write the folder; it appears under its name when it is complete.

    Args:
        like: Folder of the ``config.json``, and of the ``generation_config.json`` where it has one.
        out: Folder to write.
        seed: Of the weights; the same seed gives the same files.
        layers: Number of blocks, if not as published.
        shard_bytes: Most bytes of a weight file.
        dtype: Type of the weights.
        tokenizer: Folder to copy a tokenizer from; by default ``like``, if it has one.
        plain_chatml: Give the tokenizer the end token ``<|im_end|>`` and a plain ChatML template,
            as in the instruct releases without thinking.

    Returns:
        The weight files, the index last.

    Raises:
        UserError: ``like`` is no family that jroute knows, or ``out`` is taken.
    """
    if tokenizer is None and has_tokenizer(like):
        tokenizer = like
    if tokenizer is not None and not has_tokenizer(tokenizer):
        raise UserError(f"{tokenizer} holds no tokenizer; copy its files there from a release")
    content = _config(like, layers, dtype)
    if plain_chatml and tokenizer is None:
        raise UserError("--plain-chatml changes a tokenizer; name its folder with --tokenizer")
    entries = layout(config_from_hf(content, where=str(like / "config.json"))).values()
    shapes = {name: entry.hf_shape for entry in entries for name in entry.names}
    shapes = {name: shapes[name] for name in sorted(shapes, key=published_order)}
    sizes = {name: int(np.prod(shape)) * np.dtype(dtype).itemsize for name, shape in shapes.items()}
    make = _random_tensors(shapes, dtype, seed)
    total = sum(sizes.values())
    with (
        new_folder(out, total) as partial,
        tqdm(desc="write", unit="B", unit_scale=True, total=total, disable=None) as bar,
    ):

        def draw(names: Sequence[str]) -> dict[str, np.ndarray]:
            tensors = {name: make(name) for name in names}
            bar.update(sum(sizes[name] for name in names))
            return tensors

        files = write_shards(partial, sizes, draw, shard_bytes)
        text = json.dumps(content, indent=2) + "\n"
        (partial / "config.json").write_text(text, encoding="utf-8")
        if (like / "generation_config.json").is_file():
            shutil.copyfile(like / "generation_config.json", partial / "generation_config.json")
        if tokenizer is not None:
            _copy_tokenizer(tokenizer, partial, plain_chatml=plain_chatml)
    return [Path(out) / file.name for file in files]


def _config(like: Path, layers: int | None, dtype: Dtype) -> dict[str, Any]:
    """Return the content of ``config.json`` with this depth and type."""
    content = read_json(like / "config.json", dict[str, Any], TAKE_RELEASED)
    if layers is not None:
        if layers < 1:
            raise UserError(f"--layers is {layers}; give a positive number")
        content["num_hidden_layers"] = layers
    if dtype != content.get("torch_dtype", dtype):
        content["torch_dtype"] = dtype
    return content


def _random_tensors(
    shapes: Mapping[str, tuple[int, ...]], dtype: Dtype, seed: int
) -> Callable[[str], np.ndarray]:
    """Return a function that makes the tensor of a name."""
    block = np.random.default_rng(seed).standard_normal(PERIOD, np.float32)
    starts = np.random.default_rng([seed, 1]).choice(PERIOD, len(shapes), replace=False)
    start_of = dict(zip(shapes, starts.tolist(), strict=True))

    @cache
    def scaled(mean: float, deviation: float) -> np.ndarray:
        return (np.float32(mean) + np.float32(deviation) * block).astype(dtype)

    def make(name: str) -> np.ndarray:
        shape = shapes[name]
        if len(shape) == 2:
            values = scaled(0, shape[1] ** -0.5)
        else:
            values = scaled(0 if name.endswith(".bias") else 1, 0.1)
        return np.resize(np.roll(values, -start_of[name]), shape)

    return make


def _copy_tokenizer(source: Path, to: Path, *, plain_chatml: bool) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, to / name)
    if plain_chatml:
        (to / "chat_template.jinja").unlink(missing_ok=True)
        remedy = "copy it from a release"
        settings = read_json(to / "tokenizer_config.json", dict[str, Any], remedy)
        settings |= {"chat_template": PLAIN_CHATML, "eos_token": "<|im_end|>"}
        text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
        (to / "tokenizer_config.json").write_text(text, encoding="utf-8")


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, write and print."""
    parser = argparse.ArgumentParser(
        prog="python scripts/random_model.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--like", required=True, type=Path, help="folder with a config.json")
    parser.add_argument("--out", required=True, type=Path, help="the folder to write")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer (default: --like)")
    parser.add_argument(
        "--plain-chatml",
        action="store_true",
        help="end token <|im_end|>, template without thinking",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the weights (default: 0)")
    parser.add_argument("--layers", type=int, help="number of blocks (default: as published)")
    parser.add_argument(
        "--shard-bytes", type=int, default=2 * 10**9, help="most bytes of a weight file"
    )
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16")
    arguments = parser.parse_args(argv)
    files = write_random(**vars(arguments))
    print(f"wrote {arguments.out}")
    for file in files:
        print(f"  {file.name}  {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    run_command(main, "nothing was written")
