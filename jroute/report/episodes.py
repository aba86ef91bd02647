"""SplitReport problems as episodes for traces: one for every problem and gate."""

from collections.abc import Iterator, Mapping
from typing import Any

from jroute.observe.traces import Episode
from jroute.report.report_data import Cell, ProblemRow, ReportData, SplitReport


def episodes(judged: SplitReport, material: ReportData) -> Iterator[Episode]:
    """Every cell of a split; arms that choose the same gate share an episode, and are named."""
    outcomes = material.results.get("outcomes", "")
    for row in judged.rows:
        for cell in row.cells:
            yield Episode(
                key=f"{outcomes}/{judged.name}/{row.problem.id}/{cell.gate}",
                prompt=row.prompt or row.problem.question,
                features=row.features,
                gate=cell.gate,
                completion=cell.completion,
                tokens=cell.tokens,
                stop_reason=cell.stop_reason,
                parsed=cell.parsed,
                status=cell.status,
                gold=row.problem.answer,
                correct=cell.correct,
                reward=cell.reward,
                labels={
                    "run": material.name,
                    "split": judged.name,
                    "problem": row.problem.id,
                    "arms": _arms(row, cell),
                },
            )


def _arms(row: ProblemRow, cell: Cell) -> list[str]:
    named = [name for name, gate in row.arms.items() if gate == cell.gate]
    constant = f"fixed:{cell.gate[0]:g}"
    if len(set(cell.gate)) == 1 and constant not in named:
        named.append(constant)
    return named


def shared(material: ReportData) -> Mapping[str, Any]:
    """What all episodes of a run share, under OpenTelemetry's names."""
    decoding = material.decoding
    known = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "jroute",
        "gen_ai.request.model": material.results.get("model"),
        "gen_ai.request.max_tokens": decoding.get("max_new_tokens"),
        "gen_ai.request.temperature": decoding.get("temperature"),
        "gen_ai.request.top_k": decoding.get("top_k"),
        "gen_ai.request.top_p": decoding.get("top_p"),
        "gen_ai.request.stop_sequences": list(decoding.get("stop", ())) or None,
    }
    return {name: value for name, value in known.items() if value is not None}
