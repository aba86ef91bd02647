"""Who is measured: our engine and its peers, and what each needs to run."""

import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NamedTuple

OURS = "jroute"


class Side(NamedTuple):
    """One side of the comparison.

    Attributes:
        script: Its worker, in this folder.
        on_jax: Whether it computes with JAX.
        requirements: What pip installs into its environment.
        pythons: Interpreters that its environment may be made with, the first that runs.
    """

    script: str
    on_jax: bool
    requirements: Sequence[str] = ()
    pythons: Sequence[str] = ()


_TORCH = ("torch==2.13.0", "transformers==5.23.0", "psutil")
# Every side on JAX gets the same JAX, so that the compiler is not what is compared; but for SkyRL,
# whose flax refuses one before 0.11.1.
_JAX = f"jax=={metadata.version('jax')}"

SIDES = {
    OURS: Side("ours.py", True),
    "transformers": Side(
        "hf_transformers.py",
        False,
        _TORCH,
        (sys.executable,),
    ),
    "tunix": Side("google_tunix.py", True, ("google-tunix==0.1.7", _JAX), (sys.executable,)),
    "skyrl": Side(
        "skyrl_tx.py", True, ("skyrl[jax]==0.4.0", "jax==0.11.1"), ("python3.12", "python3.13")
    ),
}
