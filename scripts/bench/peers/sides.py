"""The sides that are measured: our engine and its peers, and what each needs to run."""

import sys
from collections.abc import Sequence
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
# The JAX that jroute has under Python 3.12, and the least that SkyRL's flax takes.
_JAX = "jax==0.11.1"
_NEW_PYTHONS = ("python3.12", "python3.13")

SIDES = {
    OURS: Side("ours.py", True),
    "transformers": Side(
        "hf_transformers.py",
        False,
        _TORCH,
        (sys.executable,),
    ),
    "tunix": Side("google_tunix.py", True, ("google-tunix==0.1.7", _JAX), _NEW_PYTHONS),
    # A single row is faster under this JAX.
    "tunix-jax-0.10": Side(
        "google_tunix.py", True, ("google-tunix==0.1.7", "jax==0.10.2"), (sys.executable,)
    ),
    "skyrl": Side("skyrl_tx.py", True, ("skyrl[jax]==0.4.0", _JAX), _NEW_PYTHONS),
}
