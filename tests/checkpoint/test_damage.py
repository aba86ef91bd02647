"""Damage anywhere in a model directory: one sentence, or the very same parameters."""

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jroute import convert as command
from jroute.checkpoint import load_model, read_manifest
from jroute.checkpoint.conversion import convert
from jroute.checkpoint.manifest import manifest_digest
from jroute.utils.errors import UserError
from jroute.utils.trees import flatten
from tests.converters.tiny import CONFIG, random_tensors, write_source

FLIPS = 220


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_source(tmp_path_factory.mktemp("source") / "hf", CONFIG, random_tensors(CONFIG))


@pytest.fixture(scope="module")
def converted(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "model"
    convert(str(source), out)
    return out


@pytest.fixture
def model(converted: Path, tmp_path: Path) -> Path:
    shutil.copytree(converted, tmp_path / "model")
    return tmp_path / "model"


def parameters(directory: Path) -> dict[str, bytes]:
    params, config = load_model(directory)
    assert config == CONFIG
    return {path: np.asarray(leaf).tobytes() for path, leaf in flatten(params).items()}


def flips(directory: Path) -> Iterator[tuple[Path, int, int]]:
    """Bits all over the files, every file at least once."""
    chosen = random.Random(0)
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    sizes = [file.stat().st_size for file in files]
    drawn = files + chosen.choices(files, sizes, k=FLIPS - len(files))
    for file in drawn:
        yield file, chosen.randrange(file.stat().st_size), 1 << chosen.randrange(8)


def test_no_flipped_bit_goes_unnoticed(model: Path) -> None:
    expected, silent, refused = parameters(model), [], 0
    for file, position, bit in flips(model):
        content = file.read_bytes()
        damaged = bytearray(content)
        damaged[position] ^= bit
        file.write_bytes(damaged)
        try:
            if parameters(model) != expected:
                silent.append((file, position, bit))
        except UserError as error:
            refused += 1
            assert str(model) in str(error) and "\n" not in str(error)
        file.write_bytes(content)
    assert silent == []
    assert refused >= 0.95 * FLIPS  # white space in the manifest may change
    assert parameters(model) == expected


def damage_weights(model: Path) -> Path:
    (file,) = (model / "params" / "embed_tokens").glob("c.*")
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 4
    file.write_bytes(content)
    return file


def test_a_device_notices_damage_in_its_own_part(model: Path) -> None:
    file = damage_weights(model)
    mesh = jax.make_mesh((2,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))
    with pytest.raises(UserError, match=rf"embed_tokens .*a checksum in {file} does not match"):
        load_model(model, shardings=NamedSharding(mesh, PartitionSpec()))


def test_converting_again_says_that_it_is_damaged(
    source: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage_weights(model)
    arguments = ["--source", str(source), "--out", str(model)]
    assert command.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {model} is damaged: model.embed_tokens.weight cannot be read")
    assert error.endswith("convert again with --overwrite")
    assert command.main([*arguments, "--overwrite"]) == 0
    assert command.main(arguments) == 0
    assert "already there" in capsys.readouterr().out


def change_manifest(model: Path, *, consistent: bool = True, **changes: Any) -> None:
    content = json.loads((model / "manifest.json").read_text()) | changes
    content = {name: value for name, value in content.items() if value is not None}
    if consistent:
        content["digest"] = manifest_digest(content)
    (model / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "0" * 64}, "fingerprint .* does not follow from its config"),
        ({"dtype": "bfloat16"}, "fingerprint .* does not follow from its config"),
        ({"tensors": {}}, "fingerprint .* does not follow from its config"),
        ({"config": {}}, "config in manifest.json is impossible"),
        ({"config": {"vocab_size": -1}}, "config in manifest.json is impossible"),
        ({"stored": None}, "has no stored"),
        ({"stored": {"../x": 1}}, "stored"),
        ({"companions": {"../../etc/passwd": "0" * 64}}, "companions"),
        ({"format": "3"}, "format must be a valid integer"),
        ({"tensors": 7}, "tensors must be"),
    ],
)
def test_a_manifest_that_does_not_hold_together(model: Path, changes: Any, message: str) -> None:
    change_manifest(model, **changes)
    with pytest.raises(UserError, match=message):
        read_manifest(model)
    with pytest.raises(UserError, match=message):
        load_model(model)


def test_a_field_that_decides_nothing_is_covered_too(model: Path) -> None:
    change_manifest(model, consistent=False, source={"name": "another", "revision": None})
    with pytest.raises(UserError, match=r"digest in manifest\.json is not that of its content"):
        read_manifest(model)


def test_a_changed_companion_is_named(model: Path) -> None:
    (model / "routing.yaml").write_text("preset: mvp\n")
    with pytest.raises(UserError, match=r"routing\.yaml was changed after .* in the source first"):
        load_model(model)


def test_the_earlier_format_is_exported_and_not_loaded(model: Path, tmp_path: Path) -> None:
    """Its arrays have no checksums; the digests of its tensors hold for an export."""
    change_manifest(model, format=2, metadata=None)
    with pytest.raises(UserError, match=r"format 2 .* --overwrite, or, .* export it with --to-hf"):
        load_model(model)
    arguments = ["--to-hf", str(model), "--out", str(tmp_path / "hf")]
    assert command.main(arguments) == 0
    convert(str(tmp_path / "hf"), tmp_path / "again")
    assert (
        read_manifest(tmp_path / "again")["fingerprint"]
        == (json.loads((model / "manifest.json").read_text())["fingerprint"])
    )
