"""argparse as every command uses it: mistakes are one sentence, paths and numbers are checked."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from jroute.utils.errors import UserError, shown
from jroute.utils.inputs import check_text
from jroute.utils.paths import check_path
from jroute.utils.ranges import MAX_WHOLE, whole


class Parser(argparse.ArgumentParser):
    """Raises a ``UserError`` for a mistake, where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise the message; of an option it begins with the option's name."""
        raise UserError(f"{message.removeprefix('argument '):.400}; see --help")


def path(text: str) -> Path:
    """Return the value of an option that is a path."""
    try:
        return check_path(text, "the path")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def text(value: str) -> str:
    """Return the value of an option that is a text, which may not be empty."""
    try:
        check_text(value, "the text")
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if not value.strip() or "\0" in value:
        raise argparse.ArgumentTypeError(f"the text is {shown(value)}; give one, or leave it out")
    return value


def whole_number(low: int, high: int = MAX_WHOLE) -> Callable[[str], int]:
    """Return the type of an option that is a whole number from ``low`` to ``high``."""

    def number(value: str) -> int:
        digits = re.fullmatch(r"[+-]?[0-9]{1,20}", value.strip())
        if digits is None or not whole(low, high).holds(int(value)):
            raise argparse.ArgumentTypeError(f"{shown(value)} is not {whole(low, high)}")
        return int(value)

    return number
