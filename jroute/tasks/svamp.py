"""SVAMP (Patel et al. 2021, arXiv 2103.07191): 1,000 short problems with perturbed wording.

All of them are the test split, and nothing trains on them. The hub splits them into 700 and 300;
both are read, and the number in a problem's ``ID`` decides its id and its place, so the hub and the
original file give the same list.
"""

import re
from pathlib import Path

from jroute.tasks.numbers import canonical
from jroute.tasks.problem import Problem
from jroute.tasks.sources import locate, number_field, read_hub, read_json, shown, text_field
from jroute.utils.errors import UserError

HUB_NAME = "ChilleD/SVAMP"
_ID = re.compile(r"chal-([0-9]{1,9})")


def load(path: str) -> list[Problem]:
    """Load all problems.

    Args:
        path: ``SVAMP.json`` or its folder; ``""`` for ``$JROUTE_DATA/svamp`` or else the hub.

    Raises:
        UserError: The data is missing or damaged.
    """
    where = locate(path, "svamp")
    if where is None:
        name, rows = HUB_NAME, read_hub(HUB_NAME, None, ["train", "test"])
    else:
        file = where / "SVAMP.json" if where.is_dir() else where
        if not file.is_file():
            raise UserError(f"{where} has no SVAMP.json; put it there or correct task.path.")
        name, rows = str(file), read_json(Path(file))

    problems: dict[int, Problem] = {}
    for number, row in enumerate(rows):
        here = f"{name}, row {number} (from 0)"
        match = _ID.fullmatch(text_field(row, "ID", here))
        if not match or int(match[1]) in problems:
            raise UserError(
                f"{here}: ID {shown(row['ID'])} is not a new 'chal-' number; restore the file."
            )
        gold = number_field(row, "Answer", here)
        if gold.denominator != 1:
            raise UserError(
                f"{here}: Answer {shown(row['Answer'])} is not a whole number; restore the file."
            )
        body = text_field(row, "Body", here).strip()
        question = text_field(row, "Question", here).strip()
        problems[int(match[1])] = Problem(
            id=f"svamp/test/{int(match[1])}",
            question=f"{body}{'' if body.endswith('.') else '.'} {question}",
            answer=canonical(gold),
            labels={"type": str(row.get("Type") or "")},
        )
    return [problems[number] for number in sorted(problems)]
