"""Two evaluations of the same task, document by document, from the samples that lm-eval writes.

Backends can reach the same score by answering differently. Agreement of the two evaluations is
counted per document: the prompt, the text, the answer that each filter read, and the score.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from jroute.utils.errors import UserError
from jroute.utils.json_files import Record, check, parse_json, read_bytes

_SHOWN = 60
_MAX_BYTES = 4 * 2**30


class Sample(Record):
    """What is read of a row that lm-eval writes; its metrics stand beside these fields.

    Attributes:
        doc_id: Number of the document.
        filter: lm-eval's filter.
        doc_hash: Digest of the document.
        prompt_hash: Digest of the prompt.
        resps: Responses to each request of the document.
        filtered_resps: What the filter read.
        metrics: Names of the metrics.
    """

    doc_id: int
    filter: str
    doc_hash: str
    prompt_hash: str
    resps: Annotated[list[Annotated[list[Any], Field(min_length=1)]], Field(min_length=1)]
    filtered_resps: Any
    metrics: list[str] = Field(default_factory=list)


@dataclass(frozen=True)
class Agreement:
    """What two evaluations of one task have in common, by document.

    Attributes:
        task: The task.
        filter: lm-eval's filter.
        metric: The metric.
        n: Documents that both answered.
        only_first: Documents that only the first one answered.
        only_second: Documents that only the second one answered.
        same_prompt: Documents with equal prompts.
        same_text: Documents with equal texts, character by character.
        same_answer: Documents of which the filter read equal answers.
        same_score: Documents with equal values of the metric.
        scores: Mean of the metric over these documents, first and second.
        first_better: Documents with a larger value in the first.
        second_better: Documents with a larger value in the second.
        common_prefix: Mean share of the longer text that both begin with.
        differing: ``doc_id`` of documents whose score differs.
    """

    task: str
    filter: str
    metric: str
    n: int
    only_first: int
    only_second: int
    same_prompt: int
    same_text: int
    same_answer: int
    same_score: int
    scores: tuple[float, float]
    first_better: int
    second_better: int
    common_prefix: float
    differing: tuple[int, ...]


def find_samples(path: Path, task: str | None = None) -> dict[str, Path]:
    """Return the newest samples file of each task in a folder, or the file itself.

    Args:
        path: A file ``samples_<task>_<date>.jsonl``, or a folder that holds such files, at any
            depth.
        task: Only of this task.

    Raises:
        UserError: There is no such file, or a folder holds samples of several models.
    """
    if path.is_file():
        return {_task_of(path): path}
    files = sorted(path.rglob("samples_*.jsonl")) if path.is_dir() else []
    newest: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: file.stem.rpartition("_")[2]):
        name = _task_of(file)
        if task in (None, name):
            if name in newest and newest[name].parent != file.parent:
                raise UserError(
                    f"{path} holds samples of {name} in {newest[name].parent} and in "
                    f"{file.parent}; name one of these folders"
                )
            newest[name] = file
    if not newest:
        of_task = f" of task {task}" if task else ""
        raise UserError(
            f"{path} holds no samples{of_task}; evaluate with --log_samples and --output_path first"
        )
    return newest


def read_samples(file: Path) -> list[dict[str, Any]]:
    """Read the rows of a samples file: one per document and filter.

    Raises:
        UserError: The file is not a samples file.
    """
    remedy = "give files that lm-eval wrote with --log_samples"
    rows = []
    content = read_bytes(file, remedy, max_bytes=_MAX_BYTES)
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.strip():
            where = f"{file}, line {number}"
            row = parse_json(line, dict[str, Any], where, remedy)
            check(row, Sample, f"{where}: this sample of lm-eval", remedy)
            rows.append(row)
    if not rows:
        raise UserError(f"{file} holds no samples")
    return rows


def metric_values(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[int, float]]:
    """Return the value of every document that has a number, per metric and filter."""
    values: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        for metric in row.get("metrics", ()):
            value = row.get(metric)
            if isinstance(value, bool | int | float) and abs(value) < 1e300:
                values.setdefault((metric, row["filter"]), {})[row["doc_id"]] = float(value)
    return values


def agree(
    task: str, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> list[Agreement]:
    """Compare two sets of samples, for each filter and metric that both have.

    Raises:
        UserError: Their documents differ under the same numbers, or they share no metric.
    """
    first_values, second_values = metric_values(first), metric_values(second)
    shared = [key for key in first_values if key in second_values]
    if not shared:
        raise UserError(f"the two evaluations of {task} have no filter and metric in common")
    agreements = []
    for key in shared:
        by_document = [
            {row["doc_id"]: row for row in rows if row["filter"] == key[1]}
            for rows in (first, second)
        ]
        both = _common_documents(task, *by_document)
        scores = [
            [values[key].get(i, 0.0) for i in both] for values in (first_values, second_values)
        ]
        agreements.append(_agreement(task, key, by_document, both, scores))
    return agreements


def _common_documents(
    task: str, first: Mapping[int, Mapping[str, Any]], second: Mapping[int, Mapping[str, Any]]
) -> list[int]:
    both = sorted(first.keys() & second.keys())
    for doc_id in both:
        if first[doc_id]["doc_hash"] != second[doc_id]["doc_hash"]:
            raise UserError(
                f"document {doc_id} of {task} is different in the second evaluation; "
                "compare evaluations of the same data"
            )
    if not both:
        raise UserError(f"the two evaluations of {task} have no document in common")
    return both


def _agreement(
    task: str,
    key: tuple[str, str],
    by_document: Sequence[Mapping[int, Mapping[str, Any]]],
    both: Sequence[int],
    scores: Sequence[Sequence[float]],
) -> Agreement:
    """Count what two evaluations have in common under one metric and filter."""
    first, second = by_document
    pairs = [(first[doc_id], second[doc_id]) for doc_id in both]
    score_pairs = list(zip(*scores, strict=True))
    return Agreement(
        task=task,
        filter=key[1],
        metric=key[0],
        n=len(both),
        only_first=len(first.keys() - second.keys()),
        only_second=len(second.keys() - first.keys()),
        same_prompt=sum(p["prompt_hash"] == q["prompt_hash"] for p, q in pairs),
        same_text=sum(p["resps"] == q["resps"] for p, q in pairs),
        same_answer=sum(p["filtered_resps"] == q["filtered_resps"] for p, q in pairs),
        same_score=sum(x == y for x, y in score_pairs),
        scores=(sum(scores[0]) / len(both), sum(scores[1]) / len(both)),
        first_better=sum(x > y for x, y in score_pairs),
        second_better=sum(x < y for x, y in score_pairs),
        common_prefix=sum(_common_prefix(p, q) for p, q in pairs) / len(pairs),
        differing=tuple(i for i, (x, y) in zip(both, score_pairs, strict=True) if x != y),
    )


def compare_samples(first: Path, second: Path, task: str | None = None) -> list[Agreement]:
    """Compare two evaluations, for every task that both have.

    Args:
        first: A samples file of lm-eval, or a folder that holds some.
        second: Likewise.
        task: Only this task.

    Raises:
        UserError: There are no samples, or their documents differ.
    """
    first_files, second_files = find_samples(first, task), find_samples(second, task)
    shared = [name for name in first_files if name in second_files]
    if not shared:
        raise UserError(
            f"{first} has samples of {', '.join(first_files)} and {second} of "
            f"{', '.join(second_files)}; compare evaluations of the same task"
        )
    return [
        agreement
        for name in shared
        for agreement in agree(
            name, read_samples(first_files[name]), read_samples(second_files[name])
        )
    ]


def agreement_table(
    agreements: Sequence[Agreement], names: tuple[str, str] = ("first", "second")
) -> str:
    """Return agreements as text.

    Args:
        agreements: One for each task, metric and filter.
        names: What to call the two evaluations.
    """
    return "\n".join(line for agreement in agreements for line in _lines(agreement, names))


def _lines(agreement: Agreement, names: tuple[str, str]) -> list[str]:
    a, (first, second) = agreement, names
    lines = [f"{a.task}, {a.metric} by {a.filter}: n = {a.n} documents"]
    if a.only_first or a.only_second:
        lines.append(f"  not in both: {a.only_first} of {first}, {a.only_second} of {second}")
    lines.append(f"  {first} {a.scores[0]:.4f}, {second} {a.scores[1]:.4f}")
    counts = {
        "prompt": a.same_prompt,
        "text": a.same_text,
        "answer": a.same_answer,
        "score": a.same_score,
    }
    equal = ", ".join(f"{what} {count} ({count / a.n:.1%})" for what, count in counts.items())
    lines.append(f"  equal: {equal}")
    lines.append(f"  texts share {a.common_prefix:.1%} of their beginning on average")
    if a.differing:
        shown = ", ".join(map(str, a.differing[:_SHOWN]))
        more = f" and {len(a.differing) - _SHOWN} more" if len(a.differing) > _SHOWN else ""
        lines.append(
            f"  better in {first}: {a.first_better}, in {second}: {a.second_better}; "
            f"documents {shown}{more}"
        )
    return lines


def _task_of(file: Path) -> str:
    return file.stem.removeprefix("samples_").rpartition("_")[0] or file.stem


def _common_prefix(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Return the share of the longer of two first responses that both begin with."""
    a, b = str(first["resps"][0][0]), str(second["resps"][0][0])
    longer = max(len(a), len(b))
    same = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    return same / longer if longer else 1.0
