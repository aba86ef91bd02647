"""Damage to ``.npz`` files: a flipped bit is refused, or changes nothing that is read."""

from pathlib import Path

import numpy as np

from jroute.utils.errors import UserError
from jroute.utils.npz_files import read_arrays


def test_flipped_bits(tmp_path: Path) -> None:
    """Also in the list of members, where one flip can hide a member from ``zipfile``."""
    file = tmp_path / "arrays.npz"
    arrays = {"one": np.arange(3.0), "two": np.arange(4), "three": np.zeros((2, 1), np.float32)}
    np.savez_compressed(file, **arrays)
    content = file.read_bytes()
    refused = 0
    for bit in range(0, 8 * len(content), 3):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        file.write_bytes(flipped)
        try:
            read = read_arrays(file, "restore it")
        except UserError:
            refused += 1
            continue
        assert list(read) == list(arrays), bit
        assert all(np.array_equal(read[name], arrays[name]) for name in arrays), bit
        assert all(read[name].dtype == arrays[name].dtype for name in arrays), bit
    assert refused > len(content)
