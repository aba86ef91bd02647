"""The one version of lm-eval that this package is written for."""

import importlib.metadata

from jroute.utils.errors import UserError

VERSION = "0.4.13"
"""The version of lm-eval that ``jroute.harness`` is written for."""


def check_installed() -> None:
    """Refuse any installed version of lm-eval but ``VERSION``, without importing lm-eval.

    Raises:
        UserError: Another version is installed.
    """
    check_version(importlib.metadata.version("lm_eval"))


def check_version(installed: str) -> None:
    """Refuse any version of lm-eval but ``VERSION``.

    Raises:
        UserError: It is another version.
    """
    if installed != VERSION:
        raise UserError(
            f"lm-eval {installed} is installed, and jroute.harness is written for "
            f"{VERSION}; run pip install lm-eval=={VERSION}"
        )
