"""Any JSON-lines file with a question and a numeric answer per line.

An id ``jsonl/<split>/<line>-<digest>`` holds the line number and eight hexadecimal digits of the
SHA-256 of question and answer, so outcomes under it cannot be mistaken for those of another file or
of an edited line.

A number with a decimal point is read as what was meant: 0.30000000000000004 is 0.3, and
0.3333333333333333 is 1/3 (see ``jroute.tasks.numbers.meant``).
"""

import hashlib
from typing import Literal

from jroute.tasks.numbers import canonical
from jroute.tasks.problem import Problem
from jroute.tasks.sources import (
    held_out,
    locate,
    number_field,
    own_split,
    read_lines,
    split_file,
    text_field,
)
from jroute.utils.errors import UserError


def load(
    path: str,
    split: Literal["train", "validation", "test", "ood"],
    validation: int,
    question_field: str,
    answer_field: str,
) -> list[Problem]:
    """Load one split.

    Args:
        path: A folder with a file per split, or one file (see
            ``jroute.tasks.sources.split_file``). Without a ``validation.jsonl`` the validation
            split is held out of ``train.jsonl``.
        split: The split.
        validation: Number of rows of the training file to hold out in that case.
        question_field: Field with the text of the question.
        answer_field: Field with the answer: a number, or a text that is a number.

    Raises:
        UserError: The data is missing or damaged; the message names the line.
    """
    if not path:
        raise UserError("task jsonl has no data of its own; set task.path to a file or a folder.")
    where = locate(path, "jsonl")
    assert where is not None  # since a path was given
    if where.is_dir():
        has_validation = (where / "validation.jsonl").is_file()
    else:
        has_validation = own_split(where) == "validation"
    shared = split in ("train", "validation") and not has_validation
    source = "train" if shared else split
    file = split_file(where, source, "jsonl")

    problems = []
    for line, row in read_lines(file):
        here = f"{file}, line {line}"
        question = text_field(row, question_field, here).strip()
        answer = canonical(number_field(row, answer_field, here))
        digest = hashlib.sha256(f"{question}\n{answer}".encode()).hexdigest()[:8]
        problems.append(Problem(f"jsonl/{source}/{line}-{digest}", question, answer))
    if not shared:
        return problems
    held = held_out([problem.question for problem in problems], validation, "jsonl")
    validating = split == "validation"
    return [problem for problem, out in zip(problems, held, strict=True) if out == validating]
