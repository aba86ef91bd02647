"""Arguments of the Python interface, checked where they enter: texts, numbers, token ids."""

import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np

from jroute.utils.errors import UserError
from jroute.utils.ranges import MAX_WHOLE, whole


def check_text(text: Any, where: str) -> str:
    """Return a text.

    Raises:
        UserError: It is none, or holds half of a surrogate pair, which no encoding has.
    """
    if not isinstance(text, str):
        raise UserError(f"{where} is {text!r:.60}; give a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where} holds the lone surrogate {text[error.start]!r} at character {error.start}, "
            "which is not Unicode text; remove it"
        ) from None
    return text


def list_of(values: Any, what: str) -> list[Any]:
    """Return a sequence or an array as a list.

    Raises:
        UserError: It is neither.
    """
    if isinstance(values, (str, bytes, dict)) or not isinstance(values, Iterable):
        raise UserError(f"{what} is {values!r:.60}; give a list")
    if hasattr(values, "ndim"):  # an array, whose numbers become Python's
        values = np.asarray(values)
        return list(values) if values.ndim > 1 else values.ravel().tolist()
    return list(values)


def texts(values: Any, what: str) -> list[str]:
    """Return a list of texts.

    Raises:
        UserError: It is not one.
    """
    return [check_text(text, f"{what}[{i}]") for i, text in enumerate(list_of(values, what))]


def token_ids(row: Any, what: str, vocab_size: int, *, padding: bool = False) -> list[int]:
    """Return token ids as a list.

    Args:
        row: The ids.
        what: What they are, for messages.
        vocab_size: Size of the vocabulary.
        padding: Whether negative ids stand for padding.

    Raises:
        UserError: They are not whole numbers of the vocabulary.
    """
    ids = list_of(row, what)
    for kind in set(map(type, ids)):
        if kind is bool or not issubclass(kind, numbers.Integral):
            raise UserError(f"{what} holds a {kind.__name__}; token ids are whole numbers")
    for token in (min(ids, default=0), max(ids, default=0)):
        if token >= vocab_size or (token < 0 and not padding):
            raise UserError(f"token id {token} is outside the vocabulary of {vocab_size} ({what})")
    return ids


def whole_numbers(value: Any, count: int, what: str, *, counts_up: bool = False) -> list[int]:
    """Return one whole number for each of ``count`` items.

    Args:
        value: One for each item, or a single one for all.
        count: Number of items.
        what: Name of the argument.
        counts_up: Whether a single number is the first of consecutive ones.

    Raises:
        UserError: They are not whole numbers from 0 to 2**31 - 1, or not as many as items.
    """
    if isinstance(value, numbers.Integral):
        values = [int(value) + i * counts_up for i in range(max(count, 1))]
    else:
        values = list_of(value, what)
    one_each = len(values) == max(count, isinstance(value, numbers.Integral))
    if isinstance(value, bool) or not one_each or not all(map(whole(0).holds, values)):
        raise UserError(
            f"{what} must be one number or one for each of the {count} prompts, "
            f"each from 0 to {MAX_WHOLE}"
        )
    return [int(number) for number in values[:count]]


def check_kind(value: Any, kind: type[Any], what: str) -> None:
    """Refuse a value of another type.

    Raises:
        UserError: It is not of the type.
    """
    if not isinstance(value, kind):
        raise UserError(f"{what} is {value!r:.60}; give a {kind.__name__}")
