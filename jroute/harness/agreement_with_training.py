"""Check each item of a run's own split against the outcome recorded in training."""

import dataclasses
from collections.abc import Mapping, Sequence
from math import nan
from typing import Any, cast

from jroute.experiment.run import Run
from jroute.experiment.task_data import TaskData
from jroute.harness.comparison import TaskResult
from jroute.harness.records import Record, gate_name
from jroute.outcomes.outcome import Outcome
from jroute.routing.gate import gate_text
from jroute.tasks import Split
from jroute.utils.errors import UserError

_GATE_TOLERANCE = 1e-6


def check_against_training(
    result: TaskResult,
    run: Run,
    task: str,
    rows: Sequence[Mapping[str, Any]],
    records: Sequence[Record],
) -> TaskResult:
    """Compare prompts, texts and correctness with training's, item by item.

    Args:
        result: What lm-eval found.
        run: The run.
        task: The split.
        rows: lm-eval's samples, one per document and filter.
        records: What the model did for each request.

    Returns:
        The result with the number of items, all equal; or with the reason why training has nothing
        to compare them with.

    Raises:
        UserError: Naming the first item whose prompt, text or correctness differs.
    """
    split = cast(Split, task)
    items = [row for row in rows if row["filter"] == "jroute"]
    _check_prompts(run.data, split, items)
    if split not in run.experiment.splits:
        reason = f"training generated no outcomes of {split}"
        return dataclasses.replace(result, not_compared_because=reason)
    if run.experiment.decoding.temperature > 0:
        return dataclasses.replace(result, not_compared_because="decoding is sampled")
    by_document = {record.doc_id: record for record in records}
    for item in items:
        record = by_document[item["doc_id"]]
        gate = _gate_on_grid(record, run.grid.values)
        if gate is None:
            reason = f"gate {gate_name(record.gate)} is not one that training generated"
            return dataclasses.replace(result, not_compared_because=reason)
        _check_item(run.outcomes.outcome(split, item["doc"]["id"], gate), item, record)
    return dataclasses.replace(result, equal_to_training=len(items))


def _check_prompts(data: TaskData, split: Split, items: Sequence[Mapping[str, Any]]) -> None:
    ids = [problem.id for problem in data.problems(split)]
    prompts = dict(zip(ids, data.prompts(split), strict=True))
    for item in items:
        expected, prompt = prompts[item["doc"]["id"]], item["arguments"][0][0]
        if prompt != expected:
            raise UserError(
                f"{item['doc']['id']}: lm-eval's prompt {prompt!r} is not training's, "
                f"{expected!r}; does the chat template insert the current date?"
            )


def _check_item(outcome: Outcome, item: Mapping[str, Any], record: Record) -> None:
    current = (str(item["resps"][0][0]), bool(item["exact_match"]), record.truncated)
    recorded = (outcome.completion, outcome.correct, outcome.stop_reason == "length")
    if current != recorded:
        raise UserError(
            f"{outcome.problem_id} at gate {gate_text(outcome.gate)}: (text, correct, truncated) "
            f"is {current} now but was {recorded} in training; if the outcomes come from another "
            "machine or other library versions, train in a new run folder"
        )


def _gate_on_grid(record: Record, grid: Sequence[float]) -> float | None:
    """Return the gate of the grid that a request ran under; no routing is gate 0."""
    gate = nan if isinstance(record.gate, tuple) else record.gate or 0.0
    return next((each for each in grid if abs(each - gate) <= _GATE_TOLERANCE), None)
