"""The model that every side gets: random weights in Hugging Face layout, and jroute's own form."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes  # noqa: F401 - teaches numpy the name "bfloat16"
import numpy as np

from converters.hf_config import config_to_hf
from jroute.checkpoint.conversion import Dtype
from jroute.model.config import DecoderConfig
from jroute.utils.errors import UserError

ROOT = Path(__file__).parents[3]
TOKENIZER = ROOT / "jroute" / "assets" / "tiny-gated"

SHARPNESS = 3.0
"""The norms of queries and keys are multiplied by it.

With plain random weights, attention is nearly uniform, and every row soon repeats the same
token whatever came before: such tokens would be right under a wrong position encoding, too.
"""


def make_model(config: DecoderConfig, dtype: Dtype, folder: Path) -> tuple[Path, Path]:
    """Return the checkpoint and its conversion; reuse what is complete in ``folder``."""
    folder = folder.resolve()
    source, converted = folder / "huggingface", folder / "jroute"
    if not (folder / "complete").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config_to_hf(config)))
        if not source.is_dir():
            writing = ["-m", "scripts.random_model", "--like", folder, "--out", source]
            _python(*writing, "--dtype", dtype, "--tokenizer", TOKENIZER)
        _sharpen(source)
        _python("-m", "jroute.convert", "--overwrite", "--source", source, "--out", converted)
        (folder / "complete").touch()
    return source, converted


def _python(*arguments: str | Path) -> None:
    """Run a command in its own process, so that the caller keeps none of its memory."""
    command = [sys.executable, *map(str, arguments)]
    if subprocess.run(command, cwd=ROOT, check=False, stdout=subprocess.DEVNULL).returncode:
        raise UserError(f"{' '.join(command)} failed; see above")


def _sharpen(source: Path) -> None:
    """Multiply the norms of queries and keys in place, once: a marker file records it."""
    if (source / "sharpened").is_file():
        return
    for file in source.glob("*.safetensors"):
        with file.open("rb") as start:
            length = int.from_bytes(start.read(8), "little")
            header = json.loads(start.read(length))
        for name, entry in header.items():
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                kind = {"F32": "float32", "BF16": "bfloat16"}[entry["dtype"]]
                offset = 8 + length + entry["data_offsets"][0]
                shape = tuple(entry["shape"])
                values = np.memmap(file, np.dtype(kind), "r+", offset, shape)
                values[:] = (values.astype(np.float32) * SHARPNESS).astype(kind)
                values.flush()
    (source / "sharpened").touch()
