"""lm-eval's batch size as the number of rows that run at a time."""

import re
from typing import Any

from jroute.utils.errors import UserError


def slots_of(batch_size: Any) -> int | None:
    """Return lm-eval's ``batch_size`` as the number of rows; ``None`` for ``auto``.

    Raises:
        UserError: It is neither a positive number nor ``auto``.
    """
    text = str(batch_size)
    if text == "auto" or text.startswith("auto:"):
        return None
    if not re.fullmatch("0*[1-9][0-9]{0,6}", text):
        raise UserError(f"--batch_size is {text[:60]}; give a positive number or auto")
    return int(text)
