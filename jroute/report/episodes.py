"""Judged problems as episodes for traces: one for every problem and gate."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jroute.arms.registry import fixed_name
from jroute.observe.progress import progress_bar
from jroute.observe.traces import Episode, TraceConfig, Traces
from jroute.outcomes.outcome import Outcome
from jroute.report.report_data import ProblemRow, ReportData, SplitReport
from jroute.routing.gate import gate_numbers


def episodes(split: SplitReport, data: ReportData) -> Iterator[Episode]:
    """Yield every cell of a split; arms that choose the same gate share an episode."""
    outcomes = data.results.get("outcomes", "")
    for row in split.rows:
        for cell in row.cells:
            yield Episode(
                key=f"{outcomes}/{split.name}/{row.problem.id}/{gate_numbers(cell.gate)}",
                prompt=row.prompt or row.problem.question,
                features=row.features,
                gate=gate_numbers(cell.gate),
                completion=cell.completion,
                tokens=cell.tokens,
                stop_reason=cell.stop_reason,
                parsed=cell.parsed,
                status=cell.status,
                gold=row.problem.answer,
                correct=cell.correct,
                reward=cell.reward,
                labels={
                    "run": data.name,
                    "split": split.name,
                    "problem": row.problem.id,
                    "arms": _arms(row, cell),
                },
            )


def _arms(row: ProblemRow, cell: Outcome) -> list[str]:
    """Return the arms that choose a cell, the fixed gate included."""
    names = [name for name, gate in row.arms.items() if gate == cell.gate]
    numbers = gate_numbers(cell.gate)
    fixed = fixed_name(numbers[0])
    if len(set(numbers)) == 1 and fixed not in names:
        names.append(fixed)
    return names


def run_attributes(data: ReportData) -> Mapping[str, Any]:
    """Return what all episodes of a run share, under OpenTelemetry's names."""
    decoding = data.decoding
    attributes = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "jroute",
        "gen_ai.request.model": data.results.get("model"),
        "gen_ai.request.max_tokens": decoding.max_new_tokens,
        "gen_ai.request.temperature": decoding.temperature,
        "gen_ai.request.top_k": decoding.top_k,
        "gen_ai.request.top_p": decoding.top_p,
        "gen_ai.request.stop_sequences": list(decoding.stop) or None,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def export(data: ReportData, config: TraceConfig, folder: Path) -> list[str]:
    """Write every judged episode as a span.

    Returns:
        For every split and place, how many episodes were written, in words.
    """
    summary = []
    for split in data.splits:
        total = sum(len(row.cells) for row in split.rows)
        with Traces(config, folder, split.name, run_attributes(data)) as traces:
            title = f"traces {split.name}"
            traces.write(iter(progress_bar(episodes(split, data), title, total, unit="episode")))
        summary += [
            f"{place}: {total - lost:,} of {total:,} episodes of {split.name}"
            for place, lost in traces.lost.items()
        ]
    return summary
