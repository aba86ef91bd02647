"""Episodes as spans: in files, at a collector, and with everything failing."""

import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow.parquet as pq
import pytest

from jroute.observe import traces
from jroute.observe.traces import Episode, TraceConfig, Traces
from jroute.utils.errors import UserError
from tests.support import most_bytes_of_a_file

COMMON = {"gen_ai.request.model": "tiny", "gen_ai.request.max_tokens": 40}


def episodes(count: int) -> list[Episode]:
    return [
        Episode(
            key=f"table/test/{i}",
            prompt=f"What is {i} + 1?",
            features={"prompt_length": 9.0, "first_token_entropy": 0.5},
            gate=(0.25, 0.5),
            completion=f"<b>{i + 1}</b>",
            tokens=4,
            stop_reason="length" if i else "end_token",
            parsed=str(i + 1),
            status="ok",
            gold="1",
            correct=i == 0,
            reward=float(i == 0),
            labels={"split": "test", "arms": ["rl", "baseline"]},
            start=1_000 + i,
            end=2_000 + i,
        )
        for i in range(count)
    ]


EXPECTED = {
    "gen_ai.request.model": "tiny",
    "gen_ai.usage.input_tokens": 9,
    "gen_ai.usage.output_tokens": 4,
    "gen_ai.response.finish_reasons": ["stop"],
    "jroute.features.first_token_entropy": 0.5,
    "jroute.gate": [0.25, 0.5],
    "jroute.answer.parsed": "1",
    "jroute.answer.gold": "1",
    "jroute.reward": 1.0,
    "jroute.arms": ["rl", "baseline"],
}


@contextmanager
def server(status: int = 200) -> Iterator[tuple[str, list]]:
    """A collector: address, and what was posted to it."""
    got: list[tuple[str, dict, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, dict(self.headers), body))
            answer = b'{"project_id": "p1"}' if "resolve" in self.path else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}", got
        finally:
            running.shutdown()
            thread.join()


def received(got: list) -> list:
    """Spans of OTLP requests."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    requests = [ExportTraceServiceRequest.FromString(b) for p, _, b in got if p.endswith("traces")]
    return [
        span
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def plain(value) -> object:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return [plain(one) for one in value.array_value.values]
    return getattr(value, kind)


def test_traces_are_off_by_default(tmp_path) -> None:
    assert not TraceConfig().on
    with Traces(TraceConfig(), tmp_path / "traces", "test", COMMON) as off:
        off.write(episodes(3))
    assert off.lost == {} and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_files_hold_every_attribute(tmp_path, kind) -> None:
    with Traces(TraceConfig(format=kind), tmp_path / "traces", "test", COMMON) as file:
        file.write(episodes(300))  # more than a batch
    path = tmp_path / "traces" / f"test.{kind}"
    assert file.lost == {str(path): 0} and list(path.parent.iterdir()) == [path]
    if kind == "parquet":
        rows = pq.read_table(path).to_pylist()
    else:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(rows) == 300 and len({row["trace_id"] for row in rows}) == 300
    first = rows[0]
    assert {name: first[name] for name in EXPECTED} == EXPECTED
    assert json.loads(first["gen_ai.input.messages"]) == [
        {"role": "user", "parts": [{"type": "text", "content": "What is 0 + 1?"}]}
    ]
    assert json.loads(first["gen_ai.output.messages"])[0]["parts"][0]["content"] == "<b>1</b>"
    assert first["gen_ai.evaluation.score.value"] == 1.0
    assert rows[1]["gen_ai.response.finish_reasons"] == ["length"]
    assert (first["start_time_unix_nano"], first["end_time_unix_nano"]) == (1_000, 2_000)
    assert len(first["trace_id"]) == 32 and len(first["span_id"]) == 16


def test_an_episode_has_the_same_ids_whenever_it_is_written() -> None:
    one, two = (traces.make_span(episodes(2)[i], {}) for i in (0, 1))
    again = traces.make_span(episodes(1)[0], {"x": 1})
    assert (one.trace_id, one.span_id) == (again.trace_id, again.span_id)
    assert one.trace_id != two.trace_id


def test_a_collector_gets_every_span(tmp_path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    with server() as (address, got):
        config = TraceConfig(endpoint=f"{address}/v1/traces")
        with Traces(config, tmp_path, "test", COMMON) as sent:
            sent.write(episodes(300))
        spans = received(got)
    assert sent.lost == {config.endpoint: 0} and not list(tmp_path.iterdir())
    assert len(spans) == 300 and len(got) == 2 and got[0][0] == "/v1/traces"
    first = spans[0]
    attributes = {pair.key: plain(pair.value) for pair in first.attributes}
    assert {name: attributes[name] for name in EXPECTED} == EXPECTED
    assert first.name == "episode" and first.start_time_unix_nano == 1_000
    assert first.trace_id.hex() == f"{traces.make_span(episodes(1)[0], {}).trace_id:032x}"
    event = first.events[0]
    assert event.name == "gen_ai.evaluation.result"
    evaluation = {pair.key: plain(pair.value) for pair in event.attributes}
    assert evaluation["gen_ai.evaluation.score.label"] == "correct"


@pytest.mark.parametrize("failure", ["nobody listens", "refused"])
def test_a_failing_collector_stops_nothing(tmp_path, caplog, monkeypatch, failure) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setattr(traces, "TIMEOUT", 0.5)
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    with server(status=400) as (address, got), socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but it does not listen
        if failure == "nobody listens":
            address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        config = TraceConfig(format="jsonl", endpoint=f"{address}/v1/traces")
        with Traces(config, tmp_path, "test", COMMON) as sent:
            sent.write(episodes(600))
    file = tmp_path / "test.jsonl"
    assert sent.lost == {str(file): 0, config.endpoint: 600}
    assert len(file.read_text().splitlines()) == 600
    assert len(got) == (failure == "refused")  # it gets no more spans
    ours = [record.getMessage() for record in caplog.records if record.name == "jroute"]
    assert len(ours) == 2 and "the run continues" in ours[0] and "600 episodes did not" in ours[1]


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path) -> None:
    (tmp_path / "traces").write_text("a file where a folder should be")
    with pytest.raises(UserError, match=r"cannot write to \S+traces \(File exists\)"):
        Traces(TraceConfig(format="parquet"), tmp_path / "traces", "test")


def test_judgment_gets_them_through_its_own_exporter(tmp_path, monkeypatch) -> None:
    pytest.importorskip("judgeval")
    with server() as (address, got):
        for name, value in {"API_KEY": "k", "ORG_ID": "o", "API_URL": address}.items():
            monkeypatch.setenv(f"JUDGMENT_{name}", value)
            monkeypatch.setattr(f"judgeval.trace.tracer.JUDGMENT_{name}", value, raising=False)
        with Traces(TraceConfig(judgment="lab"), tmp_path, "test", COMMON) as sent:
            sent.write(episodes(2))
        spans = received(got)
    assert sent.lost == {"Judgment": 0} and len(spans) == 2
    headers = {name.lower(): value for name, value in got[-1][1].items()}
    assert headers["authorization"] == "Bearer k" and headers["x-project-id"] == "p1"


@pytest.mark.parametrize(
    ("config", "module", "extra"),
    [
        (TraceConfig(endpoint="http://x"), "opentelemetry.exporter.otlp.proto.http", "otlp"),
        (TraceConfig(judgment="lab"), "judgeval.trace", "judgment"),
    ],
    ids=["otlp", "judgment"],
)
def test_a_missing_package_is_named_at_the_start(tmp_path, monkeypatch, config, module, extra):
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        if name not in sys.modules or end == len(parts):
            monkeypatch.setitem(sys.modules, name, None)
            break
    monkeypatch.setitem(sys.modules, f"{module}.trace_exporter", None)
    with pytest.raises(UserError, match=rf"jroute\[{extra}\]"):
        Traces(config, tmp_path, "test")


SECRETS = ("s3cr3t", "hunter2", "topsecret", "header-key", "us%65r")


@pytest.mark.parametrize("failure", ["nobody listens", "refused", ""])
def test_secrets_of_a_collector_are_nowhere(tmp_path, capfd, monkeypatch, failure) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    monkeypatch.setattr(
        traces, "TIMEOUT", 1.5
    )  # long enough for a second try, of which the exporter warns
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=header-key")
    monkeypatch.setattr(logging.getLogger("opentelemetry"), "handlers", [])
    monkeypatch.setattr(logging.root, "handlers", [])  # those of pytest
    with server(status=400 if failure else 200) as (address, got), socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        if failure == "nobody listens":
            address = f"http://127.0.0.1:{unused.getsockname()[1]}"
        host = address.removeprefix("http://")
        endpoint = f"http://us%65r:hunter2@{host}/v1/traces?token=s3cr3t&x=topsecret#s3cr3t"
        config = TraceConfig(format="jsonl", endpoint=endpoint)
        with Traces(config, tmp_path, "test", COMMON) as sent:
            sent.write(episodes(3))
    assert len(got) == (failure != "nobody listens")
    if got:  # the collector itself gets all of them
        path, headers, _ = got[0]
        assert path == "/v1/traces?token=s3cr3t&x=topsecret" and "header-key" in headers.values()
    shown = f"http://***@{host}/v1/traces?***"
    assert sent.lost[shown] == (3 if failure else 0)
    printed = "".join(capfd.readouterr())
    assert (shown in printed) == bool(failure)
    assert ("/v1/traces?*** (Caused by" in printed) == (failure == "nobody listens")
    stored = "".join(f.read_text() for f in tmp_path.rglob("*") if f.is_file())
    everything = printed + stored + repr(sent.lost)
    assert not [secret for secret in SECRETS if secret in everything]


@pytest.mark.parametrize(
    "endpoint",
    [
        "ftp://user:hunter2@x/y",
        "user:hunter2@localhost:4318/v1",
        "http://user:hunter2@",
        "http://user:hunter2@[::1/x",
        "http://user:hunter2@x:99999999/y",
        "http://user:hunter2/s3cr3t@x/y",
        "http://x/?token=a s3cr3t",
    ],
)
def test_what_is_no_address_is_refused_and_not_quoted(endpoint) -> None:
    with pytest.raises(UserError, match="must be an address of a collector") as caught:
        TraceConfig(endpoint=endpoint)
    assert not [secret for secret in SECRETS if secret in str(caught.value)]


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_file_that_cannot_be_written_is_one_sentence_and_leaves_nothing(tmp_path, kind) -> None:
    traces = Traces(TraceConfig(format=kind), tmp_path / "traces", "test")
    traces.write(episodes(3))
    with (
        most_bytes_of_a_file(20),
        pytest.raises(UserError, match=rf"traces/test\.{kind} \(File too large; it takes "),
    ):
        traces.close()
    assert not list((tmp_path / "traces").iterdir())
