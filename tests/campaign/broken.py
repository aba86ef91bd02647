"""Broken inputs: every file that a command reads, broken in every way, and odd options."""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.campaign.kills import refusal
from tests.campaign.lab import Lab
from tests.campaign.trials import MEGABYTES, SECONDS, Trial
from tests.campaign.worker import ROOT, Worker

Breakage = Callable[[Path], None]


def _write(content: bytes) -> Breakage:
    return lambda path: _put(path, content)


def _put(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _halve(path: Path) -> None:
    _put(path, path.read_bytes()[: path.stat().st_size // 2])


def _replace_numbers(text: bytes) -> Breakage:
    def replace(path: Path) -> None:
        digits = b"0123456789"
        content, out, number = path.read_bytes(), bytearray(), False
        for byte in content:
            if byte in digits:
                out += b"" if number else text
                number = True
            else:
                out.append(byte)
                number = False
        _put(path, bytes(out))

    return replace


BREAKAGES: dict[str, Breakage] = {
    "missing": lambda path: path.unlink(),
    "empty": _write(b""),
    "a directory": _directory,
    "a link to itself": _loop,
    "half": _halve,
    "null": _write(b"null"),
    "a list": _write(b"[1, 2]"),
    "an empty object": _write(b"{}"),
    "nested": _write(b'{"a":' * 50_000),
    "nested flow": _write(b"[" * 20_000),
    "not UTF-8": _write(b"\xff\xfe\x00\x01" * 100),
    "NUL": _write(b"\0" * 1000),
    "long digits": _replace_numbers(b"9" * 5000),
    "negative": _replace_numbers(b"-1"),
    "NaN": _replace_numbers(b"NaN"),
    "texts": _replace_numbers(b'"x"'),
    "anchors": _write(
        b"a: &a [x,x,x,x,x,x,x,x,x]\n"
        + b"".join(
            b"%c: &%c [%s]\n" % (c, c, b",".join([b"*%c" % (c - 1)] * 9)) for c in b"bcdefghi"
        )
    ),
    "tags": _write(b"a: !!int x\nb: !!timestamp y\nc: !!python/object:os.system {}\n"),
}

SOURCE = ("jroute.convert", "--source", "source", "--out", "fresh")
TRAIN = ("jroute.train", "--config", "day.yaml")
REPORT = ("jroute.report", "--run", "run")
EVALUATE = ("jroute.evaluate", "--run", "run")
COMPARE = ("jroute.compare", "run", "twin", "--replicates", "100")
PROBE = ("jroute.probe", "--config", "day.yaml", "--prompts", "1", "--calibrate_sinks", "true")
EXPORT = ("jroute.convert", "--to-hf", "model", "--out", "exported")
JSONL = (*TRAIN, "--plan", "--task.name", "jsonl", "--task.path", "data")

FILES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("source/config.json", SOURCE),
    ("source/model.safetensors", SOURCE),
    ("source/tokenizer.json", SOURCE),
    ("source/generation_config.json", SOURCE),
    ("source/routing.yaml", SOURCE),
    ("model/manifest.json", EXPORT),
    ("model/config.json", EXPORT),
    ("model/generation_config.json", PROBE),
    ("model/tokenizer.json", PROBE),
    ("model/tokenizer_config.json", PROBE),
    ("model/routing.yaml", PROBE),
    ("model/params/_METADATA", EXPORT),
    ("model/params/final_norm/zarr.json", EXPORT),
    ("day.yaml", (*TRAIN, "--plan")),
    ("run/config.yaml", REPORT),
    ("run/results.json", REPORT),
    ("run/results.json", COMPARE),
    ("run/items.parquet", REPORT),
    ("run/items.parquet", COMPARE),
    ("run/probe/probe.json", REPORT),
    ("run/tensorboard/seeds/*.npz", REPORT),
    ("run/features/test-*.npz", EVALUATE),
    ("run/controller/*.json", EVALUATE),
    ("run/controller/*/*/state/_METADATA", EVALUATE),
    ("run/outcomes/*/_table.json", EVALUATE),
    ("run/outcomes/*/part-*.parquet", EVALUATE),
    ("data/train.jsonl", JSONL),
    ("data/test.jsonl", JSONL),
)

ODD = (
    "nan",
    "inf",
    "-1",
    "1e309",
    "",
    "²",
    "x" * 300,
    "null",
    "[]",
    "{a: 1}",
    "0/99999999999999",
    "٣",
)
PATHS = ("", "/", "day.yaml", "day.yaml/x", "x" * 300, "/proc/1/nothing", ".")
NUMBERS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((*TRAIN, "--plan"), "--seed"),
    ((*TRAIN, "--plan"), "--gates"),
    ((*TRAIN, "--plan"), "--decoding.temperature"),
    ((*TRAIN, "--plan"), "--decoding.max_new_tokens"),
    ((*TRAIN, "--plan"), "--ppo.learning_rate"),
    ((*TRAIN, "--plan"), "--ppo.updates"),
    ((*TRAIN, "--plan"), "--task.train"),
    ((*TRAIN, "--plan"), "--task.test"),
    ((*TRAIN, "--plan"), "--engine.slots"),
    (("jroute.outcomes", "--config", "day.yaml", "--plan"), "--share"),
    (("jroute.outcomes", "--config", "day.yaml", "--plan"), "--problems"),
    (("jroute.outcomes", "--config", "day.yaml", "--plan"), "--gates"),
    (("scripts/lm_eval_jax.py", "--run", "run", "--arm", "baseline", "--tasks", "test"), "--limit"),
    (
        ("scripts/lm_eval_jax.py", "--run", "run", "--arm", "baseline", "--tasks", "test"),
        "--batch_size",
    ),
    (("scripts/lm_eval_jax.py", "--run", "run", "--tasks", "test", "--limit", "1"), "--arm"),
    (COMPARE[:-2], "--replicates"),
)
FOLDERS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("jroute.convert", "--source", "source"), "--out"),
    (("jroute.convert", "--out", "fresh"), "--source"),
    (("jroute.convert", "--out", "fresh"), "--to-hf"),
    ((*TRAIN, "--plan"), "--run"),
    ((*TRAIN, "--plan"), "--model"),
    (("jroute.train", "--plan"), "--config"),
    (("jroute.report",), "--run"),
    (REPORT, "--out"),
    (("jroute.evaluate",), "--run"),
    (("scripts/lm_eval_jax.py", "--arm", "baseline", "--tasks", "test"), "--run"),
)


def inputs() -> Iterator[tuple[str, tuple[str, ...], str | None, Breakage | None]]:
    """Yield every broken input: its name, the command, and the file to break, if any."""
    for pattern, argv in FILES:
        for how, breakage in BREAKAGES.items():
            yield f"{argv[0]}, {pattern} is {how}", argv, pattern, breakage
    for options, values in ((NUMBERS, ODD), (FOLDERS, PATHS)):
        for argv, option in options:
            for value in values:
                yield f"{argv[0]} {option} {value[:20]!r}", (*argv, f"{option}={value}"), None, None


def broken_inputs(
    lab: Lab,
    worker: Worker,
    folder: Path,
    rng: random.Random,
    count: int | None = None,
    *,
    only: Callable[[Any], bool] = lambda item: True,
) -> Iterator[Trial]:
    """Give commands broken inputs; they may only refuse with a sentence, or not mind."""
    every = list(filter(only, inputs()))
    prepare(lab, folder / "sound")
    for name, argv, pattern, breakage in every if count is None else rng.sample(every, count):
        day = folder / "day"
        shutil.rmtree(day, ignore_errors=True)
        shutil.copytree(folder / "sound", day, symlinks=True)
        if pattern is not None and breakage is not None:
            breakage(sorted(day.glob(pattern))[0])
        ended = worker.start(argv, day).wait(timeout=120)
        faults = list(refusal(ended))
        usual = max(lab.seconds.values())
        if ended.status and ended.seconds > usual + SECONDS:
            faults.append(("slow", f"{ended.seconds:.1f} s"))
        if ended.status == 2 and ended.megabytes > MEGABYTES + lab.megabytes:
            faults.append(("large", f"{ended.megabytes:.0f} MB"))
        yield Trial(name, argv[0], tuple(faults), took_effect=ended.status != 0)


def prepare(lab: Lab, day: Path) -> None:
    """Make a folder with everything that the commands read, all of it sound."""
    shutil.rmtree(day, ignore_errors=True)
    shutil.copytree(lab.end, day)
    shutil.copytree(ROOT / "jroute/assets/tiny-gated", day / "source")
    (day / "data").mkdir()
    for split, count in (("train", 40), ("test", 16)):
        rows = [f'{{"question": "What is {i} + 2?", "answer": "{i + 2}"}}\n' for i in range(count)]
        (day / "data" / f"{split}.jsonl").write_text("".join(rows))
