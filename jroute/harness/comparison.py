"""Arms under lm-evaluation-harness side by side: under equal conditions, compared by document."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jroute.arms.registry import RANDOM, SUBJECT
from jroute.harness.agreement import metric_values
from jroute.harness.model import JaxLM
from jroute.harness.records import Record, gate_histogram, mean_gate, totals, truncation_rate
from jroute.statistics.contrasts import paired_contrast
from jroute.statistics.holm import holm
from jroute.statistics.mcnemar import mcnemar_exact
from jroute.utils.errors import UserError

Metrics = dict[str, tuple[Any, float | None]]
"""Value and standard error (``None`` if lm-eval gives none) by ``metric,filter``."""

Results = Mapping[str, Mapping[str, "TaskResult"]]
"""Arm -> task -> result."""


@dataclass(frozen=True)
class TaskResult:
    """One task under one arm.

    Attributes:
        metrics: Value and standard error (``None`` if lm-eval gives none) by ``metric,filter``.
        values: Documents and their values, per ``metric,filter``.
        n: Number of documents.
        truncation_rate: Share of generations that reached the token limit; ``None`` without
            generations.
        prompts_cut: Prompts that were too long for the context and lost their beginning.
        foreign_prompts: Prompts of another form than the arm learned from.
        mean_gate: Mean gate over the requests.
        gate_histogram: Requests per gate.
        generated_tokens: Tokens generated.
        conditions: Everything that must be equal for all arms.
        equal_to_training: Items equal to what training recorded; ``None`` if not compared.
        not_compared_because: Why items were not compared with training.
    """

    metrics: Metrics
    values: dict[str, dict[int, float]] = field(repr=False)
    n: int
    truncation_rate: float | None
    prompts_cut: int
    foreign_prompts: int
    mean_gate: float | None
    gate_histogram: dict[str, int]
    generated_tokens: int
    conditions: dict[str, Any] = field(repr=False)
    equal_to_training: int | None = None
    not_compared_because: str = ""

    @classmethod
    def create(
        cls,
        task: str,
        rows: Sequence[Mapping[str, Any]],
        results: Mapping[str, Any],
        records: Sequence[Record],
        conditions: Mapping[str, Any],
    ) -> "TaskResult":
        """Summarize a task.

        Args:
            task: The task.
            rows: lm-eval's samples, one per document and filter.
            results: lm-eval's results of all tasks.
            records: What the model did for each request.
            conditions: Everything that must be equal for all arms.
        """
        metrics = _metrics(results["results"][task])
        by_name = {f"{m},{f}": per_doc for (m, f), per_doc in metric_values(rows).items()}
        counts = totals(records)
        return cls(
            metrics=metrics,
            values={name: by_name[name] for name in metrics if name in by_name},
            n=len({row["doc_id"] for row in rows}),
            truncation_rate=truncation_rate(records),
            prompts_cut=counts["prompts_cut"],
            foreign_prompts=counts["foreign_prompts"],
            mean_gate=mean_gate(records),
            gate_histogram=gate_histogram(records),
            generated_tokens=counts["generated_tokens"],
            conditions=dict(conditions),
        )


def group_metrics(results: Mapping[str, Any]) -> dict[str, Metrics]:
    """Return the aggregates of lm-eval's results, of each group that has any."""
    metrics = {group: _metrics(results["results"][group]) for group in results["group_subtasks"]}
    return {group: values for group, values in metrics.items() if values}


def _metrics(columns: Mapping[str, Any]) -> Metrics:
    metrics: Metrics = {}
    for name, value in columns.items():
        if "," in name and "_stderr," not in name:
            metric, filter_name = name.split(",", 1)
            error = columns.get(f"{metric}_stderr,{filter_name}")
            metrics[name] = (value, error if isinstance(error, float) else None)
    return metrics


# Equal conditions ---------------------------------------------------------------------------------


def conditions(
    task: str, rows: Sequence[Mapping[str, Any]], results: Mapping[str, Any], model: JaxLM
) -> dict[str, Any]:
    """Return everything that must be equal for all arms.

    Args:
        task: The task.
        rows: lm-eval's samples of it.
        results: lm-eval's results.
        model: The model.
    """
    prompts = "".join(row["prompt_hash"] for row in rows)
    return {
        "task_hash": results["task_hashes"][task],
        "version": results["versions"][task],
        "lm_eval_version": results["lm_eval_version"],
        "num_fewshot": results["n-shot"].get(task),
        "generation_kwargs": results["configs"][task].get("generation_kwargs"),
        "prompts": hashlib.sha256(prompts.encode()).hexdigest(),
        "chat_template_sha": results["chat_template_sha"],
        "system_instruction_sha": results["system_instruction_sha"],
        "fewshot_as_multiturn": results["fewshot_as_multiturn"],
        "max_length": model.max_length,
        "model": model.lm.fingerprint,
        "dtype": results["config"]["model_dtype"],
    }


def check_same_conditions(
    first: str,
    first_results: Mapping[str, TaskResult],
    arm: str,
    results: Mapping[str, TaskResult],
) -> None:
    """Make sure that two arms answered the same requests under the same conditions.

    Args:
        first: Name of the first arm.
        first_results: Its result of each task.
        arm: Name of the other arm.
        results: Its result of each task.

    Raises:
        UserError: Prompts, targets, decoding, template or versions differ.
    """
    for task, result in results.items():
        expected = first_results[task].conditions
        differing = [key for key, value in result.conditions.items() if value != expected[key]]
        if differing:
            raise UserError(
                f"arms {first} and {arm} were not evaluated under the same conditions in {task} "
                f"({', '.join(differing)}); did its data or the model change meanwhile? Run all "
                "arms again"
            )


# Contrasts ----------------------------------------------------------------------------------------


def contrasts(arms: Mapping[str, TaskResult]) -> list[dict[str, Any]]:
    """Return paired differences by document: of every arm to the first, of ``rl`` to every other.

    p-values come from the bootstrap over documents, and from McNemar's exact test where all values
    are 0 or 1; those of one metric are adjusted together (Holm).

    Args:
        arms: One task's result under each arm.

    Raises:
        UserError: Arms were scored on different documents.
    """
    rows: list[dict[str, Any]] = []
    for metric, values in next(iter(arms.values())).values.items():
        if len(values) < 2:
            continue
        family = [_contrast(metric, a, b, arms) for a, b in _pairs(list(arms))]
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
        rows += family
    return rows


def _pairs(names: list[str]) -> list[tuple[str, str]]:
    if names[0] == SUBJECT:
        return [(SUBJECT, name) for name in names[1:]]
    pairs = [(name, names[0]) for name in names[1:]]
    if SUBJECT in names:
        pairs += [(SUBJECT, name) for name in names[1:] if name != SUBJECT]
    return pairs


def _contrast(metric: str, a: str, b: str, arms: Mapping[str, TaskResult]) -> dict[str, Any]:
    of_a, of_b = arms[a].values[metric], arms[b].values[metric]
    if of_a.keys() != of_b.keys():
        raise UserError(f"arms {a} and {b} were not scored on the same documents")
    x, y = (np.array([values[doc] for doc in sorted(of_a)]) for values in (of_a, of_b))
    contrast = paired_contrast(x, y)
    row: dict[str, Any] = {
        "metric": metric,
        "a": a,
        "b": b,
        "n": contrast.n,
        "difference": contrast.difference,
        "ci95": list(contrast.ci95),
        "p": contrast.p,
    }
    if np.isin(np.concatenate([x, y]), (0.0, 1.0)).all():
        test = mcnemar_exact(x, y)
        row |= {"only_a": test.only_a, "only_b": test.only_b, "p_mcnemar": test.p}
    return row


# The summary as JSON and as text ------------------------------------------------------------------


def summary(results: Results, groups: Mapping[str, Mapping[str, Metrics]]) -> dict[str, Any]:
    """Return all arms together, for the summary file.

    Args:
        results: The tasks.
        groups: Arm -> group -> what lm-eval aggregates over its tasks.
    """
    first = next(iter(results.values()))
    return {
        "tasks": {task: {"n": result.n, **result.conditions} for task, result in first.items()},
        "arms": {
            arm: {task: _summary_of_task(result) for task, result in tasks.items()}
            for arm, tasks in results.items()
        },
        **({"groups": _groups_as_json(groups)} if any(groups.values()) else {}),
        "paired": {task: contrasts(_by_arm(results, task)) for task in first},
    }


def _groups_as_json(groups: Mapping[str, Mapping[str, Metrics]]) -> dict[str, Any]:
    return {
        arm: {group: _as_json(metrics) for group, metrics in of_arm.items()}
        for arm, of_arm in groups.items()
    }


def _as_json(metrics: Metrics) -> dict[str, Any]:
    return {name: {"value": value, "stderr": error} for name, (value, error) in metrics.items()}


def _summary_of_task(result: TaskResult) -> dict[str, Any]:
    return {
        "metrics": _as_json(result.metrics),
        "n": result.n,
        "truncated": result.truncation_rate,
        "prompts_cut": result.prompts_cut,
        "foreign_prompts": result.foreign_prompts,
        "mean_gate": result.mean_gate,
        "gates": result.gate_histogram,
        "generated_tokens": result.generated_tokens,
        "equal_to_training": result.equal_to_training,
    }


def results_table(results: Results, groups: Mapping[str, Mapping[str, Metrics]]) -> str:
    """Return one table for all tasks: arms down, then their paired differences; then groups."""
    lines: list[str] = []
    for task in next(iter(results.values())):
        arms = _by_arm(results, task)
        lines += ["", *_scores(task, arms), *_remarks(arms)]
    for group in dict.fromkeys(group for of_arm in groups.values() for group in of_arm):
        lines += ["", *_group_scores(group, {arm: groups[arm][group] for arm in groups})]
    lines += [f"{RANDOM} is one draw per prompt"] if RANDOM in results else []
    lines += [f"{SUBJECT} is the seed that was best on validation"] if SUBJECT in results else []
    return "\n".join(lines)


def _group_scores(group: str, arms: Mapping[str, Metrics]) -> list[str]:
    names = list(next(iter(arms.values())))
    widths = [max(len(name), 15) for name in names]
    wide = max(14, *(len(arm) + 2 for arm in arms))
    head = "  ".join(f"{name:>{w}}" for name, w in zip(names, widths, strict=True))
    lines = [f"group {group} (value ± standard error)", f"{'arm':<{wide}}{head}"]
    for arm, metrics in arms.items():
        cells = [f"{_value(*metrics[name]):>{w}}" for name, w in zip(names, widths, strict=True)]
        lines.append(f"{arm:<{wide}}{'  '.join(cells)}")
    return lines


def _scores(task: str, arms: Mapping[str, TaskResult]) -> list[str]:
    first = next(iter(arms.values()))
    names = list(first.metrics)
    widths = [max(len(name), 15) for name in names]
    wide = max(14, *(len(arm) + 2 for arm in arms))
    head = "  ".join(f"{name:>{w}}" for name, w in zip(names, widths, strict=True))
    lines = [
        f"{task}: n = {first.n} (value ± standard error)",
        f"{'arm':<{wide}}{head}  truncated  mean gate     tokens",
    ]
    for arm, result in arms.items():
        cells = "  ".join(
            f"{_value(*result.metrics[name]):>{w}}" for name, w in zip(names, widths, strict=True)
        )
        rate, gate = result.truncation_rate, result.mean_gate
        truncated = "-" if rate is None else f"{100 * rate:.1f}%"
        mean = "-" if gate is None else f"{gate:.3f}"
        tokens = f"{result.generated_tokens:>9,}"
        lines.append(f"{arm:<{wide}}{cells}  {truncated:>9}  {mean:>9}  {tokens}")
    return lines


def _remarks(arms: Mapping[str, TaskResult]) -> list[str]:
    """Return notes on a task beyond its scores, and its paired differences."""
    first = next(iter(arms.values()))
    lines = []
    if first.prompts_cut:
        lines.append(
            f"{first.prompts_cut} prompts were longer than the context: their beginning was cut"
        )
    lines += [
        f"{arm} learned from prompts in another format than {result.foreign_prompts} of these, and "
        "was forced"
        for arm, result in arms.items()
        if result.foreign_prompts
    ]
    if len(arms) > 1:
        lines.append(
            "every arm was asked the same: prompts, targets, decoding, template and versions "
            f"are equal, lm-eval's task hash is {first.conditions['task_hash'][:16]}"
        )
        lines += _contrast_lines(contrasts(arms))
    equal = [each.equal_to_training for each in arms.values() if each.equal_to_training is not None]
    if equal:
        lines.append(
            f"{sum(equal)} of {first.n * len(equal)} items agree with training's own outcomes "
            "in text and correctness"
        )
    lines += [
        f"{arm} is not compared with training: {result.not_compared_because}"
        for arm, result in arms.items()
        if result.not_compared_because
    ]
    return lines


def _contrast_lines(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for i, row in enumerate(rows):
        if not i or rows[i - 1]["metric"] != row["metric"]:
            lines.append(
                f"{row['metric']}, paired by document: points, 95 % interval, p (Holm), McNemar's p"
            )
        low, high = (100 * end for end in row["ci95"])
        line = f"  {row['a']} - {row['b']}: {100 * row['difference']:+.1f}  "
        line += f"[{low:+.1f}, {high:+.1f}]  {row['p']:.2g} ({row['p_holm']:.2g})"
        if "p_mcnemar" in row:
            line += f"  {row['p_mcnemar']:.2g} ({row['only_a']} to {row['only_b']})"
        lines.append(line)
    return lines


def _by_arm(results: Results, task: str) -> dict[str, TaskResult]:
    return {arm: tasks[task] for arm, tasks in results.items()}


def _value(value: Any, error: float | None) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return f"{text} ± {error:.4f}" if error is not None else text
