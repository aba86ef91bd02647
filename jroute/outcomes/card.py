"""The card of an outcome table: ``_table.json``, which names the table and describes it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from jroute.utils.errors import UserError
from jroute.utils.files import write_json
from jroute.utils.fingerprint import semantic_fingerprint
from jroute.utils.json_files import Record, read_json

CARD = "_table.json"
"""Its name, which Parquet readers skip."""


class Card(Record):
    """The content of a card.

    Attributes:
        fingerprint: The fingerprint of the table.
        parts: Numbers in one gate.
        description: What was fingerprinted, for people.
        digest: Digest of the other fields; an earlier version wrote none, and its description gives
            the fingerprint.
    """

    fingerprint: str
    parts: Annotated[int, Field(ge=1, le=1_000_000)]
    description: dict[str, Any]
    digest: str = ""

    @model_validator(mode="after")
    def _is_intact(self) -> "Card":
        try:
            actual = _digest(self) if self.digest else semantic_fingerprint(self.description)
        except TypeError as error:  # a number that is not finite
            raise ValueError(f"is damaged ({error})") from None
        if actual != (self.digest or self.fingerprint):
            raise ValueError("is damaged, its content has another digest")
        return self


def read_card(folder: Path) -> Card:
    """Read the card of a table's folder.

    Raises:
        UserError: There is none, or it is damaged.
    """
    return read_json(
        folder / CARD, Card, "delete it, and the next run that fills the table writes it again"
    )


def check_card(folder: Path, fingerprint: str, num_gate_dims: int) -> Card:
    """Read the card of a folder that must be of a certain table.

    Raises:
        UserError: The card is damaged, or of another table.
    """
    card = read_card(folder)
    if card.fingerprint != fingerprint:
        raise UserError(
            f"{folder / CARD} is the outcome table of fingerprint {card.fingerprint:.80}, not of "
            f"{fingerprint}: move that folder back to its own name, outcomes of two experiments "
            "never mix"
        )
    if card.parts != num_gate_dims:
        raise UserError(
            f"{folder / CARD} is of gates with {card.parts} dimensions, not {num_gate_dims}: "
            "check the path"
        )
    return card


def write_card(
    folder: Path, fingerprint: str, num_gate_dims: int, description: Mapping[str, Any]
) -> None:
    """Write the card of a table; ``description`` is in canonical form."""
    card = Card.model_construct(
        fingerprint=fingerprint, parts=num_gate_dims, description=dict(description)
    )
    write_json(folder / CARD, card.model_dump(exclude={"digest"}) | {"digest": _digest(card)})


def _digest(card: Card) -> str:
    return semantic_fingerprint(card.model_dump(exclude={"digest"}))
