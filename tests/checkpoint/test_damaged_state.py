"""Damaged training states: every flip is a sentence or has no effect."""

import logging
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jroute.checkpoint import load_state, resume_state, save_state
from jroute.checkpoint.state import DamagedState, saved_steps
from jroute.utils.errors import UserError

FLIPS = 250
OLD = Path(__file__).parent.parent / "fixtures" / "runs" / "table"


def small_state(step: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(step)
    return {
        "params": {i: rng.normal(size=(3, 5)).astype(np.float32) for i in range(2)},
        "bias": jnp.arange(4, dtype=jnp.bfloat16),
        "key": jax.random.key(step),
        "digests": np.arange(2),  # as the description names the file
        "empty": np.zeros((0, 2)),
        "selected": 3,
    }


def bits(tree: Any) -> list[Any]:
    def words(leaf: Any) -> Any:
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        return type(leaf), str(array.dtype), array.shape, array.tobytes()

    return [(jax.tree_util.keystr(p), words(x)) for p, x in jax.tree.leaves_with_path(tree)]


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size)


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    file.write_bytes(content)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    save_state(folder, 5, small_state())
    return folder


def test_every_flipped_bit_is_a_sentence_or_has_no_effect(saved, tmp_path):
    rng, outcomes = random.Random(14), Counter()
    expected, files = bits(small_state()), files_of(saved)
    for i in range(FLIPS):
        file = files[i % len(files)]  # each as often: most bits lie in few files
        original = file.read_bytes()
        flip(file, rng.randrange(len(original) * 8))
        try:
            step, state = load_state(saved, small_state(1) if i % 2 else None)
            assert (step, bits(state)) == (5, expected), file
            outcomes["no effect"] += 1
        except DamagedState as error:
            assert str(error).startswith(f"the state {saved / '5'} is damaged or cannot be read (")
            assert file.name in str(error) or "is missing" in str(error)
            assert "delete that folder" in str(error) and len(str(error)) < 700
            outcomes["a sentence"] += 1
        finally:
            file.write_bytes(original)
    assert outcomes == {"a sentence": FLIPS}
    assert bits(load_state(saved)[1]) == expected


def damage(item: str, change: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Apply a change to the largest file of the arrays, the description or the digests."""

    def apply(step: Path) -> None:
        change(max(files_of(step / item), key=lambda file: file.stat().st_size))

    return apply


@pytest.mark.parametrize(
    "change",
    [
        lambda step: [shutil.rmtree(part) for part in step.iterdir() if part.is_dir()],
        lambda step: shutil.rmtree(step / "state"),
        lambda step: shutil.rmtree(step / "description"),
        damage("state", lambda file: file.write_bytes(b"")),
        damage("state", lambda file: file.write_bytes(file.read_bytes()[:-7])),
        damage("state", lambda file: (file.unlink(), file.mkdir())),
        damage("description", lambda file: file.write_text("{}")),
        lambda step: (step / "digests.json").unlink(),
        lambda step: (step / "digests.json").write_bytes(b""),
        lambda step: ((step / "digests.json").unlink(), (step / "digests.json").mkdir()),
        lambda step: (step / "digests.json").write_text('{"files": ' + '{"a": ' * 5000),
        lambda step: (step / "digests.json").write_text('{"files": {"state": 3}}'),
    ],
)
def test_a_step_that_is_not_whole_is_a_sentence(saved, tmp_path, change):
    shutil.copytree(saved, tmp_path / "copy")
    change(tmp_path / "copy" / "5")
    with pytest.raises(DamagedState, match=r"copy/5 is damaged or cannot be read \(.+\); throw"):
        load_state(tmp_path / "copy", remedy="throw it away")


def test_resuming_passes_over_a_damaged_step_with_a_warning(tmp_path, caplog):
    for step in (50, 100):
        save_state(tmp_path, step, small_state(step))
    damage("state", lambda file: flip(file, 300))(tmp_path / "100")
    with caplog.at_level(logging.WARNING, logger="jroute"):
        resumed = resume_state(tmp_path, small_state())
    assert resumed is not None
    assert resumed[0] == 50 and bits(resumed[1]) == bits(small_state(50))
    (record,) = caplog.records
    assert f"the state {tmp_path / '100'} is damaged or cannot" in record.getMessage()
    assert "an earlier step is tried" in record.getMessage()
    with pytest.raises(UserError, match="already holds step 100"):
        save_state(tmp_path, 100, small_state(100))
    save_state(tmp_path, 100, small_state(100), replace=True)
    assert bits(load_state(tmp_path)[1]) == bits(small_state(100))


def test_a_state_saved_after_falling_back_is_the_newest(tmp_path):
    """With three steps, of which the last two are damaged, the next one is not older than any."""
    for step in (50, 100, 150):
        save_state(tmp_path, step, small_state(step), keep=3)
    save_state(tmp_path, 100, small_state(1), replace=True)
    assert saved_steps(tmp_path) == [50, 100]
    assert bits(load_state(tmp_path)[1]) == bits(small_state(1))


def test_all_steps_damaged_is_a_sentence(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "5" / "state")
    with pytest.raises(UserError, match=r"every saved state in .*copy is damaged; delete"):
        resume_state(tmp_path / "copy", small_state())
    assert resume_state(tmp_path / "empty", small_state()) is None


def test_a_file_instead_of_the_folder_is_a_sentence(tmp_path):
    (tmp_path / "states").write_text("")
    with pytest.raises(UserError, match="not a readable folder of states"):
        load_state(tmp_path / "states")


def test_names_that_are_no_steps_are_ignored(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "copy")
    for name in ("007", "٣", "9.tmp", "-1"):
        (tmp_path / "copy" / name).mkdir()
    (tmp_path / "copy" / "12").write_text("a file")
    assert saved_steps(tmp_path / "copy") == [5]


def test_a_state_without_digests_loads_and_says_so(caplog):
    with caplog.at_level(logging.INFO, logger="jroute"):
        step, tree = load_state(next((OLD / "controller").glob("*/")))
    assert step == 20 and "featurizer" in tree
    assert "saved by an earlier version, without digests to check" in caplog.text
