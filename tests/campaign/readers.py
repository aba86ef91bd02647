"""Every reader that jroute has, each with valid inputs to mutate."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from converters.safetensors import Checkpoint
from jroute.arms.registry import parse_arm
from jroute.checkpoint import load_state, read_manifest
from jroute.checkpoint.conversion_plan import plan_conversion
from jroute.experiment.comparison import read_judged
from jroute.experiment.config import Experiment
from jroute.experiment.feature_store import read_features
from jroute.harness.agreement import compare_samples
from jroute.lm import resolve_routing
from jroute.observe.scalars import read_curves
from jroute.outcomes.table import OutcomeTable
from jroute.outcomes.table_part import TablePart
from jroute.probe.files import read_probe
from jroute.tasks import gsm8k, jsonl, svamp
from jroute.tasks.answers import parse_answer
from jroute.tasks.numbers import parse_number
from jroute.utils.config import load, parse
from jroute.utils.digested import KEY
from jroute.utils.yaml_files import read_yaml
from tests.campaign.lab import CONFIG
from tests.campaign.mutations import Read, bytes_like, json_like, reading

NamedReader = tuple[str, st.SearchStrategy[Any], Read]

ANSWERS = (
    r"6 * 7 = 42. The answer is \boxed{\frac{1}{2}}",
    "So she has 1,234.50 dollars left.\n#### 1,234.50",
    "Therefore, the answer is **18**.",
    "答案是 2 ½ 或 3×10⁵",
)
OPTIONS = (
    ("--seed", "3"),
    ("--gates", "[0, 0.5, 1]"),
    ("--decoding.temperature", "0.7"),
    ("--task.train", "24"),
    ("--ppo.learning_rate", "3e-4"),
    ("--judged", "[test, ood]"),
    ("--routing", "mhc"),
    ("--allow_inert", "true"),
)


def text_readers(folder: Path) -> Iterator[NamedReader]:
    """Yield the readers of what people and data sets write; ``folder`` is for scratch files."""
    folder.mkdir(parents=True, exist_ok=True)

    def answer(text: bytes) -> None:
        parsed = parse_answer(text.decode(errors="surrogateescape"))
        assert not parsed.text or parse_number(parsed.text) is not None

    yield "answers", _any_of(ANSWERS), answer
    rows = {"question": "What is 2 + 3?", "answer": 5}
    for name, read in (
        ("jsonl", lambda: jsonl.load(str(folder), "train", 0, "question", "answer")),
        ("gsm8k", lambda: gsm8k.load(str(folder), "train", 0)),
    ):
        row = rows | ({"answer": "It is 2 + 3.\n#### 5"} if name == "gsm8k" else {})
        lines = st.one_of(json_like(row), bytes_like(f"{json.dumps(row)}\n".encode() * 3))
        yield name, lines, reading(folder / "train.jsonl", read)
    problem = {"ID": "chal-1", "Body": "Two and 3.", "Question": "How many?", "Answer": 5.0}
    problem |= {"Equation": "( 2.0 + 3.0 )", "Type": "Addition"}
    svamp_file = folder / "SVAMP.json"
    yield "svamp", json_like([problem]), reading(svamp_file, lambda: svamp.load(str(svamp_file)))
    yaml_file = folder / "file.yaml"
    yaml = _any_of((CONFIG, "a: &x [1, 2]\nb: *x\nc: {d: 2024-01-01, e: 0x1f}\n"))
    yield "YAML", yaml, reading(yaml_file, lambda: read_yaml(yaml_file))
    yield "experiment", _any_of((CONFIG,)), reading(yaml_file, lambda: load(Experiment, yaml_file))
    yield "options", st.tuples(st.sampled_from(OPTIONS), st.data()), _option
    yield "arms", _any_of(("fixed:0.5", "rl", "baseline")), lambda text: parse_arm(_text(text))
    share = _any_of(("0/4", "1/2"))
    yield "share", share, lambda text: TablePart(share=_text(text)).shares


def file_readers(source: Path, model: Path, run: Path, folder: Path) -> Iterator[NamedReader]:
    """Yield the readers of what jroute and Hugging Face store.

    Args:
        source: A small checkpoint of Hugging Face.
        model: The model directory made from it.
        run: A judged run with an outcome table.
        folder: For copies, which the readers change.
    """
    copies = {}
    for name, original in (("source", source), ("model", model), ("run", run)):
        copies[name] = folder / name
        shutil.rmtree(copies[name], ignore_errors=True)
        shutil.copytree(original, copies[name])
    source, model, run = copies.values()

    def plan() -> object:
        return plan_conversion(str(source), folder / "out")

    yield from _json_and_bytes("config.json", source / "config.json", plan)
    yield from _json_and_bytes("generation_config.json", source / "generation_config.json", plan)
    weights = source / "model.safetensors"
    content = weights.read_bytes()
    yield "safetensors", *_headers(content, _put_back(weights, content, lambda: Checkpoint(source)))
    yield from _json_and_bytes(
        "manifest.json", model / "manifest.json", lambda: read_manifest(model)
    )
    routing = model / "routing.yaml"
    yield _restoring("routing.yaml", routing, lambda: resolve_routing(model, str(routing)))
    (table,) = (path.parent for path in run.glob("*/*/_table.json"))
    yield from _json_and_bytes(
        "_table.json", table / "_table.json", lambda: OutcomeTable.open(table)
    )
    yield _without_digest("_table.json", table / "_table.json", lambda: OutcomeTable.open(table))
    for part in sorted(table.glob("part-*.parquet"))[:1]:
        yield _restoring("table part", part, lambda: OutcomeTable.open(table))
    (run / "config.yaml").unlink()  # else reading it again takes most of the time
    results = run / "results.json"
    yield from _json_and_bytes("results.json", results, lambda: read_judged(run, None))
    yield _without_digest("results.json", results, lambda: read_judged(run, None))
    yield _restoring("items.parquet", run / "items.parquet", lambda: read_judged(run, None))
    for probe in run.glob("probe/probe.json"):
        yield _without_digest("probe.json", probe, lambda f=probe: read_probe(f))
    for curves in sorted(run.glob("tensorboard/seeds/*.npz")):
        yield _restoring("curves", curves, lambda: read_curves(run / "tensorboard"))
    for features in sorted(run.glob("features/test-*.npz")):
        yield _restoring("features", features, lambda f=features: read_features(f, "delete it"))
    for state in sorted(run.glob("controls/*")):
        yield _restoring(
            "Orbax metadata", state / "0/state/_METADATA", lambda s=state: load_state(s)
        )


def sample_reader(samples: Path, folder: Path) -> NamedReader:
    """Return the reader of lm-eval's samples."""
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(samples, folder / name / samples.name)
    row = json.loads(samples.read_text().splitlines()[0])
    file = folder / "one" / samples.name
    return (
        "samples",
        json_like(row),
        reading(file, lambda: compare_samples(folder / "one", folder / "two")),
    )


def _any_of(texts: tuple[str, ...]) -> st.SearchStrategy[bytes]:
    return st.one_of([bytes_like(text.encode()) for text in texts])


def _text(content: bytes) -> str:
    return content.decode(errors="replace")


def _option(drawn: tuple[tuple[str, str], st.DataObject]) -> object:
    (name, value), data = drawn
    text = _text(data.draw(bytes_like(value.encode())))
    return parse(Experiment, ["--run", "r", "--model", "m", f"{name}={text}"], prog="campaign")


def _json_and_bytes(name: str, file: Path, read: Callable[[], object]) -> Iterator[NamedReader]:
    content = file.read_bytes()
    both = st.one_of(json_like(json.loads(content)), bytes_like(content))
    yield name, both, _put_back(file, content, read)


def _without_digest(name: str, file: Path, read: Callable[[], object]) -> NamedReader:
    """Return the reader of a file as an earlier jroute wrote it: damage meets the schema."""
    content = json.loads(file.read_bytes())
    content.pop(KEY, None)
    mutated = json_like(content)
    return f"{name} without a digest", mutated, _put_back(file, file.read_bytes(), read)


def _restoring(name: str, file: Path, read: Callable[[], object]) -> NamedReader:
    content = file.read_bytes()
    return name, bytes_like(content), _put_back(file, content, read)


def _put_back(file: Path, content: bytes, read: Callable[[], object]) -> Read:
    """Return a reader that leaves the file as it was, for the readers that come after it."""

    def write_read_restore(mutated: bytes) -> object:
        file.write_bytes(mutated)
        try:
            return read()
        finally:
            file.write_bytes(content)

    return write_read_restore


def _headers(content: bytes, read: Read) -> tuple[st.SearchStrategy[tuple[bytes, bool]], Read]:
    """Draw headers of a safetensors file, with a length that fits or does not; read the file.

    What is drawn is kept until the end, so it is only the header.
    """
    size = int.from_bytes(content[:8], "little")
    header, values = content[8 : 8 + size], content[8 + size :]

    def join(drawn: tuple[bytes, bool]) -> object:
        mutated, fits = drawn
        length = len(mutated) if fits else size
        return read(length.to_bytes(8, "little") + mutated + values)

    mutated = st.one_of(json_like(json.loads(header)), bytes_like(header))
    return st.tuples(mutated, st.booleans()), join
