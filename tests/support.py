"""What several tests need."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import pytest
from beartype import BeartypeConf, beartype

# An int is welcome where a float is expected, as it is for a static checker.
typecheck = beartype(conf=BeartypeConf(is_pep484_tower=True))


@contextmanager
def in_a_hurry(module: Any, *names: str) -> Iterator[None]:
    """Compiles these programs of a module (static: ``config``) without optimisation inside."""
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            hurried = jax.jit(
                getattr(module, name).__wrapped__,
                static_argnames=("config",),
                compiler_options={"xla_backend_optimization_level": 0},
            )
            patch.setattr(module, name, hurried)
        yield


@contextmanager
def most_bytes_of_a_file(size: int) -> Iterator[None]:
    """Let the system refuse larger files, as a full disk would."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def data_dir() -> Path:
    """Returns the folder with data from outside the repository, or skips the test.

    The folder is ``$JROUTE_DATA``. With ``JROUTE_REQUIRE_DATA=1`` a test that would be skipped
    fails instead.
    """
    folder = os.environ.get("JROUTE_DATA", "")
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = f"JROUTE_DATA is not a folder: {folder!r}" if folder else "JROUTE_DATA is not set"
    if os.environ.get("JROUTE_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)
