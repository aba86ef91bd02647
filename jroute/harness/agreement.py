"""Two evaluations of the same task, document by document, from the samples that lm-eval files.

Backends can reach the same score by answering differently. What they have in common is told per
document: the prompt, the text, the answer each filter read, and the score.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jroute.utils.errors import UserError

_SHOWN = 60


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


def find_samples(where: Path, task: str | None = None) -> dict[str, Path]:
    """The newest samples file of each task in a folder, or the file itself.

    Args:
        where: A file ``samples_<task>_<date>.jsonl``, or a folder that holds such files, at any
            depth.
        task: Only of this task.

    Raises:
        UserError: There is none, or a folder holds samples of several models.
    """
    if where.is_file():
        return {_task_of(where): where}
    files = sorted(where.rglob("samples_*.jsonl")) if where.is_dir() else []
    found: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: file.stem.rpartition("_")[2]):
        name = _task_of(file)
        if task in (None, name):
            if name in found and found[name].parent != file.parent:
                raise UserError(
                    f"{where} holds samples of {name} in {found[name].parent} and in "
                    f"{file.parent}; name one of these folders"
                )
            found[name] = file
    if not found:
        of = f" of task {task}" if task else ""
        raise UserError(
            f"{where} holds no samples{of}; evaluate with --log_samples and --output_path first"
        )
    return found


def read_samples(file: Path) -> list[dict[str, Any]]:
    """The rows of a samples file: one per document and filter.

    Raises:
        UserError: The file is not one.
    """
    rows = []
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1):
            if line.strip():
                row = json.loads(line)
                if not {"doc_id", "filter", "resps", "doc_hash", "prompt_hash"} <= row.keys():
                    raise UserError(f"{file}, line {number} is no sample of lm-eval")
                rows.append(row)
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{file} cannot be read as samples of lm-eval ({error})") from error
    if not rows:
        raise UserError(f"{file} holds no samples")
    return rows


def values(
    rows: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], dict[int, float]]:
    """Per metric and filter: the value of every document that has a number for one."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        for metric in row.get("metrics", ()):
            value = row.get(metric)
            if isinstance(value, bool | int | float):
                found.setdefault((metric, row["filter"]), {})[row["doc_id"]] = float(value)
    return found


def agree(
    task: str, first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> list[Agreement]:
    """Compare two sets of samples, for each filter and metric that both have.

    Raises:
        UserError: They are of other documents under the same numbers, or share no metric.
    """
    ours, theirs = values(first), values(second)
    shared = [key for key in ours if key in theirs]
    if not shared:
        raise UserError(f"the two evaluations of {task} have no filter and metric in common")
    found = []
    for metric, name in shared:
        a, b = (
            {row["doc_id"]: row for row in rows if row["filter"] == name}
            for rows in (first, second)
        )
        both = sorted(a.keys() & b.keys())
        for doc_id in both:
            if a[doc_id]["doc_hash"] != b[doc_id]["doc_hash"]:
                raise UserError(
                    f"document {doc_id} of {task} is another one in the second evaluation; "
                    "compare evaluations of the same data"
                )
        if not both:
            raise UserError(f"the two evaluations of {task} have no document in common")
        pairs = [(a[doc_id], b[doc_id]) for doc_id in both]
        x, y = ([rows[metric, name].get(i, 0.0) for i in both] for rows in (ours, theirs))
        found.append(
            Agreement(
                task=task,
                filter=name,
                metric=metric,
                n=len(both),
                only_first=len(a.keys() - b.keys()),
                only_second=len(b.keys() - a.keys()),
                same_prompt=sum(p["prompt_hash"] == q["prompt_hash"] for p, q in pairs),
                same_text=sum(p["resps"] == q["resps"] for p, q in pairs),
                same_answer=sum(p["filtered_resps"] == q["filtered_resps"] for p, q in pairs),
                same_score=sum(v == w for v, w in zip(x, y, strict=True)),
                scores=(sum(x) / len(x), sum(y) / len(y)),
                first_better=sum(v > w for v, w in zip(x, y, strict=True)),
                second_better=sum(v < w for v, w in zip(x, y, strict=True)),
                common_prefix=sum(_prefix(p, q) for p, q in pairs) / len(pairs),
                differing=tuple(i for i, v, w in zip(both, x, y, strict=True) if v != w),
            )
        )
    return found


def compare_samples(first: Path, second: Path, task: str | None = None) -> list[Agreement]:
    """Agreement of two evaluations, for every task that both have.

    Args:
        first: A samples file of lm-eval, or a folder with some.
        second: Likewise.
        task: Only this task.

    Raises:
        UserError: There are no samples, or they are not of the same documents.
    """
    ours, theirs = find_samples(first, task), find_samples(second, task)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise UserError(
            f"{first} has samples of {', '.join(ours)} and {second} of {', '.join(theirs)}; "
            "compare evaluations of the same task"
        )
    return [
        found
        for name in shared
        for found in agree(name, read_samples(ours[name]), read_samples(theirs[name]))
    ]


def table(found: Sequence[Agreement], names: tuple[str, str] = ("first", "second")) -> str:
    """Agreement as text."""
    lines = []
    for one in found:
        lines.append(f"{one.task}, {one.metric} by {one.filter}: n = {one.n} documents")
        if one.only_first or one.only_second:
            lines.append(
                f"  not in both: {one.only_first} of {names[0]}, {one.only_second} of {names[1]}"
            )
        lines.append(f"  {names[0]} {one.scores[0]:.4f}, {names[1]} {one.scores[1]:.4f}")
        shares = {
            "prompt": one.same_prompt,
            "text": one.same_text,
            "answer": one.same_answer,
            "score": one.same_score,
        }
        told = ", ".join(f"{what} {count} ({count / one.n:.1%})" for what, count in shares.items())
        lines.append(f"  equal: {told}")
        lines.append(f"  texts share {one.common_prefix:.1%} of their beginning on average")
        if one.differing:
            shown = ", ".join(map(str, one.differing[:_SHOWN]))
            more = f" and {len(one.differing) - _SHOWN} more" if len(one.differing) > _SHOWN else ""
            lines.append(
                f"  better in {names[0]}: {one.first_better}, in {names[1]}: {one.second_better}; "
                f"documents {shown}{more}"
            )
    return "\n".join(lines)


def _task_of(file: Path) -> str:
    return file.stem.removeprefix("samples_").rpartition("_")[0] or file.stem


def _prefix(first: Mapping[str, Any], second: Mapping[str, Any]) -> float:
    """Share of the longer of two first responses that both begin with."""
    a, b = str(first["resps"][0][0]), str(second["resps"][0][0])
    longer = max(len(a), len(b))
    same = next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    return same / longer if longer else 1.0
