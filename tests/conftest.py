"""Settings of the whole test run; they must stand before anything imports jax or jroute."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import jax
import jaxtyping
import pytest

import tests.support  # the hook below looks its checker up there

ROOT = Path(__file__).parent.parent
CACHE = ROOT / ".cache"

# Also set in the environment, so that a command started by a test runs under the same rules.
JAX_SETTINGS = {
    "jax_platforms": "cpu",
    "jax_num_cpu_devices": 8,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_compilation_cache_dir": str(CACHE / "jax"),
    "jax_persistent_cache_min_compile_time_secs": 0.2,
    "jax_persistent_cache_min_entry_size_bytes": 0,
    # A bounded cache is also a locked one: several test runs may share it.
    "jax_compilation_cache_max_size": 2**30,
}
for name, value in JAX_SETTINGS.items():
    os.environ[name.upper()] = str(value)
    jax.config.update(name, value)

# No test may reach for a network; Hugging Face's libraries would try.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["HF_HOME"] = str(CACHE / "huggingface")
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# Modules that handle arrays, whose shapes and dtypes no static check sees; elsewhere, as where
# answers are read character by character, the checks would take most of the time.
CHECKED = [
    ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("jroute", "converters")
    for file in sorted((ROOT / package).rglob("*.py"))
    if "jaxtyping" in file.read_text(encoding="utf-8")
]
checker = f"{tests.support.__name__}.typecheck"
jaxtyping.install_import_hook(CHECKED, checker)

# The same examples on every machine; the first one may compile, so no deadline.
hypothesis.settings.register_profile(
    "jroute", deadline=None, derandomize=True, database=None, max_examples=50
)
hypothesis.settings.load_profile("jroute")


MAPPINGS = 20_000
"""Memory mappings of a process beyond which its compiled programs are dropped.

Each compiled program holds some twenty. Linux allows 65,530 in all, and XLA crashes at the next.
"""


@pytest.fixture(scope="module", autouse=True)
def few_programs() -> Iterator[None]:
    """Drops compiled programs after a module that leaves very many behind."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > MAPPINGS:
        jax.clear_caches()
        gc.collect()


# The fixtures import what they need themselves: nothing of jroute may be imported before the hook.
@pytest.fixture(scope="session")
def tiny_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled tiny model, converted."""
    from jroute.checkpoint.conversion import convert
    from tests.model.tiny import ASSET

    out = tmp_path_factory.mktemp("tiny") / "model"
    convert(str(ASSET), out)
    return out


@pytest.fixture(scope="session")
def tiny_lm(tiny_directory: Path):
    """The bundled tiny model, loaded; it is never changed."""
    import jroute

    return jroute.load(tiny_directory)


@pytest.fixture(scope="session")
def tiny_torch():
    """The bundled tiny model in transformers' torch."""
    from tests.model.tiny import torch_tiny

    return torch_tiny()
