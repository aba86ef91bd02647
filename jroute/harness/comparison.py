"""Arms under lm-evaluation-harness side by side: asked the same, compared by document."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from jroute.harness import agreement
from jroute.harness.records import Record, gate_histogram, mean_gate, totals, truncation_rate
from jroute.statistics.contrasts import paired_contrast
from jroute.statistics.holm import holm
from jroute.statistics.mcnemar import mcnemar_exact
from jroute.utils.errors import UserError


@dataclass(frozen=True)
class Judged:
    """One task under one arm.

    Attributes:
        metrics: Value and standard error (``None`` if lm-eval gives none) by ``metric,filter``.
        values: Per ``metric,filter``: documents and their values.
        n: Documents.
        truncated: Share of generations that reached the token limit, ``None`` without generations.
        cut: Prompts that were too long for the context and lost their beginning.
        foreign: Prompts made otherwise than those the arm learnt from.
        mean_gate: Over the requests.
        gates: Requests per gate.
        tokens: Tokens generated.
        asked: Everything that must be the same for all arms.
        agreed: Items found equal to what training recorded; ``None`` if not compared.
        note: Why they were not compared.
    """

    metrics: dict[str, tuple[Any, float | None]]
    values: dict[str, dict[int, float]] = field(repr=False)
    n: int
    truncated: float | None
    cut: int
    foreign: int
    mean_gate: float | None
    gates: dict[str, int]
    tokens: int
    asked: dict[str, Any] = field(repr=False)
    agreed: int | None = None
    note: str = ""

    @classmethod
    def of(
        cls,
        task: str,
        rows: Sequence[Mapping[str, Any]],
        results: Mapping[str, Any],
        records: Sequence[Record],
        *,
        asked: Mapping[str, Any],
        agreed: int | None = None,
        note: str = "",
    ) -> "Judged":
        """What lm-eval's results and samples of a task, and the adapter's records, come to."""
        found = results["results"][task]
        metrics: dict[str, tuple[Any, float | None]] = {}
        for name, value in found.items():
            if "," in name and "_stderr," not in name:
                metric, filter_name = name.split(",", 1)
                error = found.get(f"{metric}_stderr,{filter_name}")
                metrics[name] = (value, error if isinstance(error, float) else None)
        by_name = {f"{m},{f}": per_doc for (m, f), per_doc in agreement.values(rows).items()}
        counts = totals(records)
        return cls(
            metrics=metrics,
            values={name: by_name[name] for name in metrics if name in by_name},
            n=len({row["doc_id"] for row in rows}),
            truncated=truncation_rate(records),
            cut=counts["prompts_cut"],
            foreign=counts["foreign_prompts"],
            mean_gate=mean_gate(records),
            gates=gate_histogram(records),
            tokens=counts["generated_tokens"],
            asked=dict(asked),
            agreed=agreed,
            note=note,
        )


def check_same(
    first: str, theirs: Mapping[str, Judged], arm: str, ours: Mapping[str, Judged]
) -> None:
    """Make sure that two arms were asked the same.

    Raises:
        UserError: Prompts, targets, decoding, template or versions differ.
    """
    for task, found in ours.items():
        if found.asked != theirs[task].asked:
            keys = [key for key, value in found.asked.items() if value != theirs[task].asked[key]]
            raise UserError(
                f"arms {first} and {arm} were not asked the same in {task} ({', '.join(keys)}); "
                "did its data or the model change meanwhile? Run all arms again"
            )


def contrasts(arms: Mapping[str, Judged]) -> list[dict[str, Any]]:
    """Paired differences by document, of every arm to the first, and of ``rl`` to every other.

    p-values come from the bootstrap over documents, and from McNemar's exact test where all values
    are 0 or 1; those of one metric are adjusted together (Holm).

    Raises:
        UserError: Arms were scored on other documents.
    """
    names = list(arms)
    pairs = [(name, names[0]) for name in names[1:]]
    pairs += [("rl", name) for name in names[1:] if "rl" in arms and name != "rl"]
    if "rl" in names[:1]:
        pairs = [("rl", name) for name in names[1:]]
    found: list[dict[str, Any]] = []
    for metric, values in next(iter(arms.values())).values.items():
        if len(values) < 2:
            continue
        family = []
        for a, b in pairs:
            x, y = arms[a].values[metric], arms[b].values[metric]
            if x.keys() != y.keys():
                raise UserError(f"arms {a} and {b} were not scored on the same documents")
            u, v = (np.array([one[doc] for doc in sorted(x)]) for one in (x, y))
            contrast = paired_contrast(u, v)
            row: dict[str, Any] = {"metric": metric, "a": a, "b": b, "n": contrast.n}
            row |= {"difference": contrast.difference, "ci95": list(contrast.ci95)}
            row["p"] = contrast.p
            if np.isin(np.concatenate([u, v]), (0.0, 1.0)).all():
                test = mcnemar_exact(u, v)
                row |= {"only_a": test.only_a, "only_b": test.only_b, "p_mcnemar": test.p}
            family.append(row)
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
        found += family
    return found


def summary(judged: Mapping[str, Mapping[str, Judged]]) -> dict[str, Any]:
    """What all arms came to, for one file.

    Args:
        judged: Arm -> task -> what it came to.
    """
    first = next(iter(judged.values()))
    of_arms = {
        arm: {
            task: {
                "metrics": {
                    name: {"value": value, "stderr": error}
                    for name, (value, error) in found.metrics.items()
                },
                "n": found.n,
                "truncated": found.truncated,
                "prompts_cut": found.cut,
                "foreign_prompts": found.foreign,
                "mean_gate": found.mean_gate,
                "gates": found.gates,
                "generated_tokens": found.tokens,
                "equal_to_training": found.agreed,
            }
            for task, found in tasks.items()
        }
        for arm, tasks in judged.items()
    }
    return {
        "tasks": {task: {"n": found.n, **found.asked} for task, found in first.items()},
        "arms": of_arms,
        "paired": {task: contrasts(_of(judged, task)) for task in first},
    }


def table(judged: Mapping[str, Mapping[str, Judged]]) -> str:
    """One table for all tasks: arms down, then their paired differences."""
    lines: list[str] = []
    for task, found in next(iter(judged.values())).items():
        rows = _of(judged, task)
        names = list(found.metrics)
        widths = [max(len(name), 15) for name in names]
        wide = max(14, *(len(arm) + 2 for arm in rows))
        head = "  ".join(f"{name:>{w}}" for name, w in zip(names, widths, strict=True))
        lines += ["", f"{task}: n = {found.n} (value ± standard error)"]
        lines.append(f"{'arm':<{wide}}{head}  truncated  mean gate     tokens")
        for arm, row in rows.items():
            cells = "  ".join(
                f"{_value(*row.metrics[name]):>{w}}" for name, w in zip(names, widths, strict=True)
            )
            cut = "-" if row.truncated is None else f"{100 * row.truncated:.1f}%"
            gate = "-" if row.mean_gate is None else f"{row.mean_gate:.3f}"
            lines.append(f"{arm:<{wide}}{cells}  {cut:>9}  {gate:>9}  {row.tokens:>9,}")
        if found.cut:
            lines.append(
                f"{found.cut} prompts were longer than the context: their beginning was cut"
            )
        lines += [
            f"{arm} learnt from prompts made otherwise than {row.foreign} of these, and was forced"
            for arm, row in rows.items()
            if row.foreign
        ]
        if len(rows) > 1:
            lines.append(
                "every arm was asked the same: prompts, targets, decoding, template and versions "
                f"are equal, lm-eval's task hash is {found.asked['task_hash'][:16]}"
            )
            lines += _paired(contrasts(rows))
        equal = [row.agreed for row in rows.values() if row.agreed is not None]
        if equal:
            lines.append(
                f"{sum(equal)} of {found.n * len(equal)} items agree with training's own outcomes "
                "in text and correctness"
            )
        lines += [
            f"{arm} is not compared with training: {r.note}" for arm, r in rows.items() if r.note
        ]
    lines += ["random is one draw per prompt"] if "random" in judged else []
    lines += ["rl is the seed that was best on validation"] if "rl" in judged else []
    return "\n".join(lines)


def _paired(rows: Sequence[Mapping[str, Any]]) -> list[str]:
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


def _of(judged: Mapping[str, Mapping[str, Judged]], task: str) -> dict[str, Judged]:
    return {arm: tasks[task] for arm, tasks in judged.items()}


def _value(value: Any, error: float | None) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return f"{text} ± {error:.4f}" if error is not None else text
