"""The public face of the tasks: splits, limits, errors, and what is imported."""

import subprocess
import sys

import pytest

from jroute.tasks import Split, TaskConfig, load_problems
from jroute.utils.errors import UserError


def test_synthetic_sizes_and_limit():
    config = TaskConfig(train=7, validation=5, test=6, ood=4, seed=3)
    sizes: dict[Split, int] = {"train": 7, "validation": 5, "test": 6, "ood": 4}
    for split, size in sizes.items():
        problems = load_problems(config, split)
        assert len(problems) == size
        assert problems == load_problems(config, split)
    first = load_problems(TaskConfig(test=6, limit=2, seed=3), "test")
    assert first == load_problems(config, "test")[:2]
    assert load_problems(TaskConfig(test=6, seed=4), "test") != load_problems(config, "test")


def test_default_sizes():
    config = TaskConfig()
    assert (config.train, config.validation, config.test, config.ood) == (1500, 500, 1000, 1000)


def test_bad_input_is_told():
    with pytest.raises(UserError, match=r"svamp has no 'train' split, only test;"):
        load_problems(TaskConfig(name="svamp"), "train")
    with pytest.raises(UserError, match=r"gsm8k has no 'ood' split.*train, validation, test"):
        load_problems(TaskConfig(name="gsm8k"), "ood")
    with pytest.raises(UserError, match=r"task\.limit is -1"):
        TaskConfig(limit=-1)
    with pytest.raises(UserError, match=r"task\.validation is -5"):
        TaskConfig(validation=-5)


def test_the_modules_of_this_package_import_neither_jax_nor_datasets():
    """Checked on the files themselves, since the package root may import the model."""
    code = (
        "import sys, types, pathlib\n"
        "root = types.ModuleType('jroute'); root.__path__ = [sys.argv[1]]\n"
        "sys.modules['jroute'] = root\n"
        "import jroute.tasks, jroute.tasks.answers, jroute.tasks.prompts, jroute.tasks.sources\n"
        "import jroute.tasks.gsm8k, jroute.tasks.svamp, jroute.tasks.jsonl, jroute.tasks.rewards\n"
        "jroute.tasks.load_problems(jroute.tasks.TaskConfig(test=2), 'test')\n"
        "print([m for m in ('jax', 'torch', 'datasets', 'transformers') if m in sys.modules])\n"
    )
    import jroute.tasks

    root = str(jroute.tasks.__path__[0]).removesuffix("/tasks")
    done = subprocess.run(
        [sys.executable, "-c", code, root], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
