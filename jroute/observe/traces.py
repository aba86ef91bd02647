"""Episodes as OpenTelemetry spans: prompt, features, gate, completion, answer, reward.

Off unless asked for. Spans go to a file of the run (Parquet or JSON lines, which needs nothing but
what jroute needs anyway), to an OTLP/HTTP collector, and to Judgment. Names are those of
OpenTelemetry's semantic conventions for generative AI where they have one, ``jroute.*`` where they
have none. Whatever goes wrong while a run goes on is told once and costs the run nothing but those
spans.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import pyarrow as pa
import pyarrow.parquet as pq

from jroute.utils.errors import UserError
from jroute.utils.files import atomic_write

LOG = logging.getLogger("jroute")

BATCH = 256
"""Spans that are handed to an exporter at a time."""

TIMEOUT = 5.0
"""Seconds a collector has for a batch, all attempts together."""

EVALUATION = "gen_ai.evaluation.result"
"""Name of the event that holds the reward."""

_FINISH = {"end_token": "stop", "stop_string": "stop", "length": "length"}


@dataclass(frozen=True)
class TraceConfig:
    """Where the spans of evaluated episodes go; nowhere by default.

    Attributes:
        format: File in the run's ``traces`` folder: ``parquet``, ``jsonl`` or ``off``.
        endpoint: An OTLP/HTTP collector, e.g. ``http://localhost:4318/v1/traces``; headers, a
            certificate and compression are read from OpenTelemetry's own environment variables.
            Needs ``pip install 'jroute[otlp]'``.
        judgment: A project of Judgment's; key, organisation and address are read from judgeval's
            own environment variables. Needs ``pip install 'jroute[judgment]'``.
    """

    format: Literal["off", "parquet", "jsonl"] = "off"
    endpoint: str = ""
    judgment: str = ""

    @property
    def on(self) -> bool:
        """Whether there is anywhere to write to."""
        return self.format != "off" or bool(self.endpoint or self.judgment)


@dataclass(frozen=True)
class Episode:
    """One prompt that was answered under one gate and judged.

    Attributes:
        key: Names the episode: a trace that is written again has the same ids.
        prompt: What the model read.
        features: What the controller saw, by name.
        gate: One number, or one for every band or layer.
        completion: What the model wrote.
        tokens: How many tokens that is.
        stop_reason: ``end_token``, ``stop_string`` or ``length``.
        parsed: The answer that was read from it.
        status: ``ok``, ``no_answer`` or ``truncated``.
        gold: The right answer.
        correct: Whether it is.
        reward: What was paid.
        labels: Anything else to find it by (split, problem, arms), under ``jroute.<name>``.
        start: When it began, in nanoseconds since 1970; now if not known.
        end: When it ended; ``start`` if not known.
    """

    key: str
    prompt: str
    features: Mapping[str, float]
    gate: Sequence[float]
    completion: str
    tokens: int
    stop_reason: str
    parsed: str
    status: str
    gold: str
    correct: bool
    reward: float
    labels: Mapping[str, str | list[str]] = field(default_factory=dict)
    start: int = 0
    end: int = 0


@dataclass(frozen=True)
class Span:
    """A finished span of its own trace; ids as OpenTelemetry's, 128 and 64 bits wide."""

    name: str
    trace_id: int
    span_id: int
    start: int
    end: int
    attributes: Mapping[str, Any]
    events: Mapping[str, Mapping[str, Any]]


def span(episode: Episode, common: Mapping[str, Any]) -> Span:
    """An episode as a span.

    Args:
        episode: The episode.
        common: Attributes that all episodes share: the model, the decoding.
    """
    digest = hashlib.sha256(episode.key.encode()).digest()
    start = episode.start or time.time_ns()
    finish = _FINISH.get(episode.stop_reason, episode.stop_reason)
    said = {"role": "assistant", "parts": [_text(episode.completion)], "finish_reason": finish}
    read = int(episode.features.get("prompt_length", 0))
    return Span(
        "episode",
        int.from_bytes(digest[:16], "big"),
        int.from_bytes(digest[16:24], "big"),
        start,
        max(episode.end, start),
        {
            **common,
            "gen_ai.input.messages": _json([{"role": "user", "parts": [_text(episode.prompt)]}]),
            **({"gen_ai.usage.input_tokens": read} if read else {}),
            **{f"jroute.features.{name}": float(v) for name, v in episode.features.items()},
            "jroute.gate": [float(part) for part in episode.gate],
            "gen_ai.output.messages": _json([said]),
            "gen_ai.response.finish_reasons": [finish],
            "gen_ai.usage.output_tokens": episode.tokens,
            "jroute.answer.parsed": episode.parsed,
            "jroute.answer.status": episode.status,
            "jroute.answer.gold": episode.gold,
            "jroute.reward": float(episode.reward),
            **{f"jroute.{name}": value for name, value in episode.labels.items()},
        },
        {
            EVALUATION: {
                "gen_ai.evaluation.name": "exact_match",
                "gen_ai.evaluation.score.value": float(episode.correct),
                "gen_ai.evaluation.score.label": "correct" if episode.correct else "wrong",
            }
        },
    )


def _text(content: str) -> dict[str, str]:
    return {"type": "text", "content": content}


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


@runtime_checkable
class Sink(Protocol):
    """Somewhere spans go; any exception means that they did not arrive."""

    def send(self, spans: Sequence[Span]) -> None:
        """Take some spans."""
        ...

    def close(self) -> None:
        """Everything is sent."""
        ...


class Traces:
    """Writes spans of episodes to every place that was configured; a context manager.

    A place that fails is left out from then on, with one line in the log.

    Attributes:
        lost: Spans that did not arrive, by place.
    """

    def __init__(
        self,
        config: TraceConfig,
        folder: Path,
        name: str,
        common: Mapping[str, Any] | None = None,
    ):
        """Open the places.

        Args:
            config: Which ones.
            folder: Where a file goes; it is made if it does not exist.
            name: Of that file, without its ending.
            common: Attributes that all spans share.

        Raises:
            UserError: A package is missing that was asked for.
        """
        makers: dict[str, Callable[[], Sink]] = {}
        if config.format != "off":
            file = folder / f"{name}.{config.format}"
            makers[str(file)] = lambda: _File(file)
        if config.endpoint:
            makers[config.endpoint] = lambda: _otlp(config.endpoint)
        if config.judgment:
            makers["Judgment"] = lambda: _judgment(config.judgment)
        self.lost: dict[str, int] = {}
        self._common = dict(common or {})
        self._waiting: list[Span] = []
        self._sinks: dict[str, Sink] = {}
        for place, make in makers.items():
            self.lost[place] = 0
            try:
                self._sinks[place] = make()
            except UserError:
                raise
            except Exception as error:
                self._drop(place, error)

    def __enter__(self) -> "Traces":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, episodes: Iterable[Episode]) -> None:
        """Take episodes; they may be sent later."""
        for episode in episodes:
            self._waiting.append(span(episode, self._common))
            if len(self._waiting) >= BATCH:
                self._flush()

    def close(self) -> None:
        """Send what is left."""
        self._flush()
        for place, sink in list(self._sinks.items()):
            try:
                sink.close()
            except Exception as error:
                self._drop(place, error)
        self._sinks.clear()
        for place, count in self.lost.items():
            if count:
                LOG.warning("traces: %d episodes did not reach %s", count, place)

    def _flush(self) -> None:
        spans, self._waiting = self._waiting, []
        if not spans:
            return
        for place in self.lost:
            sink = self._sinks.get(place)
            try:
                if sink is not None:
                    sink.send(spans)
            except Exception as error:
                self._drop(place, error)
            if place not in self._sinks:
                self.lost[place] += len(spans)

    def _drop(self, place: str, error: Exception) -> None:
        self._sinks.pop(place, None)
        reason = str(error).strip().splitlines() or [type(error).__name__]
        LOG.warning("traces: %s takes no more episodes (%s); the run goes on", place, reason[0])


class _File:
    """A file that is there whole, or not at all."""

    def __init__(self, file: Path):
        self.file = file
        self.rows: list[dict[str, Any]] = []
        file.parent.mkdir(parents=True, exist_ok=True)

    def send(self, spans: Sequence[Span]) -> None:
        """Keep them as rows: one column for every attribute, an event's under its own name."""
        self.rows += [
            {
                "trace_id": f"{s.trace_id:032x}",
                "span_id": f"{s.span_id:016x}",
                "name": s.name,
                "start_time_unix_nano": s.start,
                "end_time_unix_nano": s.end,
                **s.attributes,
                **{name: value for event in s.events.values() for name, value in event.items()},
            }
            for s in spans
        ]

    def close(self) -> None:
        """Write the file."""
        with atomic_write(self.file) as partial:
            if self.file.suffix == ".parquet":
                columns = dict.fromkeys(name for row in self.rows for name in row)
                table = pa.table({c: [row.get(c) for row in self.rows] for c in columns})
                pq.write_table(table, partial)
                return
            with partial.open("w", encoding="utf-8") as out:
                out.writelines(_json(row) + "\n" for row in self.rows)


class _Exporter:
    """An OpenTelemetry exporter."""

    def __init__(self, exporter: Any):
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope

        self.exporter = exporter
        self.resource = Resource.create({"service.name": "jroute"})
        self.scope = InstrumentationScope("jroute")

    def send(self, spans: Sequence[Span]) -> None:
        from opentelemetry.sdk.trace import Event, ReadableSpan
        from opentelemetry.sdk.trace.export import SpanExportResult
        from opentelemetry.trace import SpanContext, SpanKind, TraceFlags

        readable = [
            ReadableSpan(
                name=s.name,
                context=SpanContext(s.trace_id, s.span_id, False, TraceFlags(TraceFlags.SAMPLED)),
                resource=self.resource,
                attributes=s.attributes,
                events=[Event(name, values, s.end) for name, values in s.events.items()],
                kind=SpanKind.INTERNAL,
                start_time=s.start,
                end_time=s.end,
                instrumentation_scope=self.scope,
            )
            for s in spans
        ]
        if self.exporter.export(readable) is not SpanExportResult.SUCCESS:
            raise ConnectionError("it did not take a batch")

    def close(self) -> None:
        self.exporter.shutdown()


def _otlp(endpoint: str) -> Sink:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        raise _missing("traces to a collector", "otlp") from None
    return _Exporter(OTLPSpanExporter(endpoint=endpoint, timeout=TIMEOUT))


def _judgment(project: str) -> Sink:
    try:
        from judgeval.trace import NoOpJudgmentSpanExporter, Tracer
    except ImportError:
        raise _missing("traces to Judgment", "judgment") from None
    exporter = Tracer.init(project_name=project, set_active=False).get_span_exporter()
    if isinstance(exporter, NoOpJudgmentSpanExporter):
        raise ConnectionError(
            f"judgeval found no project {project!r}; check JUDGMENT_API_KEY and JUDGMENT_ORG_ID"
        )
    return _Exporter(exporter)


def _missing(what: str, extra: str) -> UserError:
    return UserError(f"{what} need a package that is missing; pip install 'jroute[{extra}]'")
