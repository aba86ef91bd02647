"""GSM8K (Cobbe et al. 2021, arXiv 2110.14168): 8,792 grade-school word problems.

The test file (1,319 rows) is the test split. The training file (7,473 rows) is split into train
and validation by ``jroute.tasks.sources.held_out``. Ids hold the row in the file, so a held-out
row is called ``gsm8k/train/...`` for any size of the validation split.
"""

import re
from typing import Literal

from jroute.tasks.numbers import canonical, parse_number
from jroute.tasks.problem import Problem
from jroute.tasks.sources import held_out, locate, read_hub, read_json, split_file, text_field
from jroute.utils.errors import UserError

HUB_NAME = "openai/gsm8k"
_CALCULATOR = re.compile(r"<<.*?>>")


def load(
    path: str, split: Literal["train", "validation", "test"], validation: int
) -> list[Problem]:
    """Load one split.

    Args:
        path: A folder with ``train.jsonl`` and ``test.jsonl`` or one such file; ``""`` for
            ``$JROUTE_DATA/gsm8k`` or else the hub.
        split: The split.
        validation: Number of rows of the training file to hold out.

    Raises:
        UserError: The data is missing or damaged.
    """
    source = "test" if split == "test" else "train"
    where = locate(path, "gsm8k")
    if where is None:
        name, rows = HUB_NAME, read_hub(HUB_NAME, "main", [source])
    else:
        file = split_file(where, source, "gsm8k")
        name, rows = str(file), read_json(file)

    places = [f"{name}, {source} row {number} (from 0)" for number in range(len(rows))]
    questions = [
        text_field(row, "question", here).strip() for row, here in zip(rows, places, strict=True)
    ]
    selected = [True] * len(rows)
    if split != "test":
        held = held_out(questions, validation, "gsm8k")
        selected = held if split == "validation" else [not out for out in held]

    problems = []
    for number, (row, here) in enumerate(zip(rows, places, strict=True)):
        steps, marker, final = text_field(row, "answer", here).rpartition("####")
        gold = parse_number(final)
        if not marker or gold is None:
            raise UserError(
                f"{here}: the answer does not end in '#### ' and a number; "
                "this is not GSM8K, so load it with task.name jsonl or correct the file."
            )
        if selected[number]:
            solution = _CALCULATOR.sub("", steps).strip()
            problem_id = f"gsm8k/{source}/{number}"
            problems.append(Problem(problem_id, questions[number], canonical(gold), solution))
    return problems
