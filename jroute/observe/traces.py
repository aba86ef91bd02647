"""Episodes as OpenTelemetry spans: prompt, features, gate, completion, answer, reward.

Off by default. Spans go to a file of the run (Parquet or JSON lines, without further dependencies),
to an OTLP/HTTP collector, and to Judgment. Names are those of OpenTelemetry's semantic conventions
for generative AI where these define one, otherwise ``jroute.*``. A failing collector is logged
once and loses its spans; the run continues. A file that cannot be written is a ``UserError``.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from jroute.utils.disk import make_folder
from jroute.utils.errors import UserError
from jroute.utils.files import write_bytes, write_text
from jroute.utils.secrets import redact_logs, redacted

LOG = logging.getLogger("jroute")

BATCH = 256
"""Spans that an exporter gets at a time."""

TIMEOUT = 5.0
"""Seconds a collector has for a batch, all attempts together."""

EVALUATION = "gen_ai.evaluation.result"
"""Name of the event that holds the reward."""

_FINISH = {"end_token": "stop", "stop_string": "stop", "length": "length"}


@dataclass(frozen=True)
class TraceConfig:
    """Where the spans of judged episodes go; nowhere by default.

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

    def __post_init__(self) -> None:
        if self.endpoint and not _is_address(self.endpoint):
            # The text may hold a password, so it is not quoted.
            raise UserError(
                "traces.endpoint must be an address of a collector, e.g. "
                "http://localhost:4318/v1/traces"
            )

    @property
    def on(self) -> bool:
        """Return whether spans are written anywhere."""
        return self.format != "off" or bool(self.endpoint or self.judgment)


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        has_host = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return has_host and parts.scheme in ("http", "https") and not re.search(r"\s", text)


@dataclass(frozen=True)
class Episode:
    """One prompt, answered under one gate and graded.

    Attributes:
        key: Name of the episode, which decides its ids.
        prompt: The text that the model read.
        features: The controller's features, by name.
        gate: One number, or one for every band or layer.
        completion: The text that the model wrote.
        tokens: Number of tokens of the completion.
        stop_reason: ``end_token``, ``stop_string`` or ``length``.
        parsed: The answer read from the completion.
        status: ``ok``, ``no_answer`` or ``truncated``.
        gold: The right answer.
        correct: Whether the answer is right.
        reward: The reward.
        labels: More attributes (split, problem, arms), under ``jroute.<name>``.
        start: When it began, in nanoseconds since 1970; now if unknown.
        end: When it ended; ``start`` if unknown.
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
    """A finished span in its own trace; ids are OpenTelemetry's, of 128 and 64 bits."""

    name: str
    trace_id: int
    span_id: int
    start: int
    end: int
    attributes: Mapping[str, Any]
    events: Mapping[str, Mapping[str, Any]]


def make_span(episode: Episode, common: Mapping[str, Any]) -> Span:
    """Make the span of an episode.

    Args:
        episode: The episode.
        common: Attributes of all episodes: the model, the decoding.
    """
    digest = hashlib.sha256(episode.key.encode()).digest()
    start = episode.start or time.time_ns()
    finish = _FINISH.get(episode.stop_reason, episode.stop_reason)
    reply = {"role": "assistant", "parts": [_text(episode.completion)], "finish_reason": finish}
    prompt_tokens = int(episode.features.get("prompt_length", 0))
    return Span(
        "episode",
        int.from_bytes(digest[:16], "big"),
        int.from_bytes(digest[16:24], "big"),
        start,
        max(episode.end, start),
        {
            **common,
            "gen_ai.input.messages": _json([{"role": "user", "parts": [_text(episode.prompt)]}]),
            **({"gen_ai.usage.input_tokens": prompt_tokens} if prompt_tokens else {}),
            **{f"jroute.features.{name}": float(v) for name, v in episode.features.items()},
            "jroute.gate": [float(part) for part in episode.gate],
            "gen_ai.output.messages": _json([reply]),
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
    """A destination of spans; any exception means that they did not arrive."""

    def send(self, spans: Sequence[Span]) -> None:
        """Send spans."""
        ...

    def close(self) -> None:
        """Finish sending."""
        ...


class Traces:
    """Write spans of episodes to every configured destination; a context manager.

    A collector that fails gets no more spans, and a line in the log says so.

    Attributes:
        lost: Number of spans that did not arrive, by destination; an address without its secrets.
    """

    def __init__(
        self,
        config: TraceConfig,
        folder: Path,
        name: str,
        common: Mapping[str, Any] | None = None,
    ):
        """Open the destinations.

        Args:
            config: The destinations.
            folder: Folder of a file, made if it does not exist.
            name: Name of that file, without its suffix.
            common: Attributes of all spans.

        Raises:
            UserError: A destination needs a package that is not installed.
        """
        makers: dict[str, Callable[[], Sink]] = {}
        if config.format != "off":
            file = folder / f"{name}.{config.format}"
            makers[str(file)] = lambda: _File(file)
        if config.endpoint:
            makers[redacted(config.endpoint)] = lambda: _otlp(config.endpoint)
        if config.judgment:
            makers["Judgment"] = lambda: _judgment(config.judgment)
        self.lost: dict[str, int] = {}
        self._common = dict(common or {})
        self._waiting: list[Span] = []
        self._sinks: dict[str, Sink] = {}
        for destination, make in makers.items():
            self.lost[destination] = 0
            try:
                self._sinks[destination] = make()
            except UserError:
                raise
            except Exception as error:
                self._drop(destination, error)

    def __enter__(self) -> "Traces":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, episodes: Iterable[Episode]) -> None:
        """Write episodes, which may be sent later."""
        for episode in episodes:
            self._waiting.append(make_span(episode, self._common))
            if len(self._waiting) >= BATCH:
                self._flush()

    def close(self) -> None:
        """Send all waiting spans and close the destinations.

        Raises:
            UserError: The system refuses to write a file.
        """
        self._flush()
        refused = None
        for destination, sink in list(self._sinks.items()):
            try:
                sink.close()
            except UserError as error:
                refused = error
            except Exception as error:
                self._drop(destination, error)
        self._sinks.clear()
        for destination, count in self.lost.items():
            if count:
                LOG.warning("traces: %d episodes did not reach %s", count, destination)
        if refused is not None:
            raise refused

    def _flush(self) -> None:
        spans, self._waiting = self._waiting, []
        if not spans:
            return
        for destination in self.lost:
            sink = self._sinks.get(destination)
            try:
                if sink is not None:
                    sink.send(spans)
            except Exception as error:
                self._drop(destination, error)
            if destination not in self._sinks:
                self.lost[destination] += len(spans)

    def _drop(self, destination: str, error: Exception) -> None:
        self._sinks.pop(destination, None)
        reason = str(error).strip().splitlines() or [type(error).__name__]
        LOG.warning(
            "traces: %s takes no more episodes (%s); the run continues",
            destination,
            redacted(reason[0]),
        )


class _File:
    """A file that exists complete or not at all."""

    def __init__(self, file: Path):
        self.file = file
        self.rows: list[dict[str, Any]] = []
        make_folder(file.parent)

    def send(self, spans: Sequence[Span]) -> None:
        """Keep spans as rows: one column for every attribute, those of events included."""
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
        if self.file.suffix == ".parquet":
            columns = dict.fromkeys(name for row in self.rows for name in row)
            table = pa.table({c: [row.get(c) for row in self.rows] for c in columns})
            content = pa.BufferOutputStream()
            pq.write_table(table, content)
            write_bytes(self.file, content.getvalue().to_pybytes())
        else:
            write_text(self.file, "".join(_json(row) + "\n" for row in self.rows))


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
    redact_logs()  # the exporter logs whole addresses
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
