"""Outcomes: what one gate gave on one problem, the table they are filed in, and who supplies them.

Decoding is fixed for a whole experiment, so a (problem, gate, sample) cell is generated once and
looked up ever after. Everything that changes what a cell means goes into one fingerprint; a table
holds the cells of exactly one.
"""

import dataclasses
import hashlib
import json
import math
import os
import platform
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float

from jroute.errors import UserError
from jroute.tasks.answers import RewardConfig, is_correct, parse_answer, reward
from jroute.tasks.problem import Problem


@dataclass(frozen=True)
class Outcome:
    """What one (problem, gate, sample) cell gave.

    Attributes:
        problem_id: The problem's id.
        gate: The gate the prompt was generated under.
        sample: Number of the sample; 0 is the only one of a greedy experiment.
        completion: Generated text, stop string already cut.
        tokens: Number of generated tokens.
        parsed: The answer read from the completion in canonical form, ``""`` if none.
        status: ``ok``, ``no_answer`` or ``truncated``.
        correct: Whether the parsed answer equals the gold one.
        reward: What a learner is paid: exact match plus the experiment's shaping.
        stop_reason: ``end_token``, ``stop_string`` or ``length``.
    """

    problem_id: str
    gate: float
    sample: int
    completion: str
    tokens: int
    parsed: str
    status: str
    correct: bool
    reward: float
    stop_reason: str


class MissingOutcome(UserError):
    """A cell was asked for that has not been generated; a table never makes one up."""


class ConflictingOutcome(UserError):
    """One cell was given two different outcomes, so one fingerprint hides two experiments."""


def semantic_fingerprint(description: Mapping[str, Any]) -> str:
    """Name an experiment by everything that changes what its cells mean.

    Args:
        description: Model weights' fingerprint, tokenizer, template, decoding, routing, dtype: any
            nesting of mappings, sequences, dataclasses, strings, booleans, finite numbers and None.
            The order of keys, tuple or list, and 0 or 0.0 make no difference.

    Returns:
        SHA-256 of its canonical JSON, 64 hexadecimal digits.

    Raises:
        TypeError: For a value of any other kind, whose text would not be stable.
    """
    text = json.dumps(
        _canonical(description), sort_keys=True, separators=(",", ":"), allow_nan=False
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _canonical(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError("a fingerprint needs string keys")
        return {key: _canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item) for item in value]
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return int(value) if value.is_integer() else value
    raise TypeError(f"a fingerprint cannot contain {value!r}, a {type(value).__name__}")


_SCHEMA = pa.schema(
    [
        pa.field("problem_id", pa.string(), nullable=False),
        pa.field("gate", pa.float64(), nullable=False),
        pa.field("sample", pa.int64(), nullable=False),
        pa.field("completion", pa.string(), nullable=False),
        pa.field("tokens", pa.int64(), nullable=False),
        pa.field("parsed", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=False),
        pa.field("reward", pa.float64(), nullable=False),
        pa.field("stop_reason", pa.string(), nullable=False),
    ]
)
_FINGERPRINT_KEY = b"jroute_fingerprint"
_Cell = tuple[str, float, int]


class OutcomeTable:
    """All cells generated so far under one fingerprint, kept as a Parquet dataset.

    The folder ``<root>/<fingerprint>/`` holds ``table.json`` (fingerprint and description) and
    ``part-*.parquet``. Every part is written whole under a temporary name and then renamed, so a
    killed run loses at most the part it was writing and resumes by asking what is ``missing``.
    A part is named by its content and carries the fingerprint, so several processes may add to a
    folder; an instance sees what was there when it was opened and what it appended itself.

    Attributes:
        folder: Where the table lies.
        fingerprint: Name of the experiment whose cells these are.
        description: What was fingerprinted, for people; as first written.
    """

    def __init__(self, root: str | Path, fingerprint: str, description: Mapping[str, Any]):
        """Open the table of a fingerprint, making its folder if there is none.

        Args:
            root: Folder that holds tables, one folder each.
            fingerprint: See `semantic_fingerprint`.
            description: Written to ``table.json`` when the table is new.

        Raises:
            UserError: If the folder belongs to another fingerprint or a file cannot be read.
            ConflictingOutcome: If two parts disagree on a cell.
        """
        self.folder = Path(root) / fingerprint
        self.fingerprint = fingerprint
        self.folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(self.folder)
        card = self.folder / "table.json"
        if not card.exists():
            text = json.dumps(
                {"fingerprint": fingerprint, "description": _canonical(description)}, indent=2
            )
            _write(card, lambda file: file.write(text.encode()))
        stored, self.description = _read_card(card)
        if stored != fingerprint:
            raise UserError(
                f"{card} is the outcome table of fingerprint {stored}, not of {fingerprint}: "
                "move that folder back to its own name, outcomes of two experiments never mix"
            )
        self._cells: dict[_Cell, Outcome] = {}
        for part in sorted(self.folder.glob("part-*.parquet")):
            self._merge(_read_part(part, fingerprint), str(part))

    @classmethod
    def open(cls, folder: str | Path) -> "OutcomeTable":
        """Open an existing table by its folder, ``<root>/<fingerprint>``.

        Raises:
            UserError: If there is no table in the folder.
        """
        folder = Path(folder)
        card = folder / "table.json"
        if not card.is_file():
            raise UserError(f"{folder} is no outcome table, it has no table.json: check the path")
        _, description = _read_card(card)
        return cls(folder.parent, folder.name, description)

    def __len__(self) -> int:
        """Number of cells."""
        return len(self._cells)

    def missing(
        self, problem_ids: Sequence[str], gates: Sequence[float], *, sample: int = 0
    ) -> list[tuple[str, float]]:
        """The (problem id, gate) pairs not generated yet, problem by problem."""
        return [
            (problem_id, gate)
            for problem_id in problem_ids
            for gate in gates
            if (problem_id, gate, sample) not in self._cells
        ]

    def append(self, outcomes: Iterable[Outcome]) -> None:
        """File outcomes as one new part; cells already there with the same outcome are left out.

        Raises:
            ConflictingOutcome: If a cell has another outcome already; nothing is written then.
            ValueError: If a gate or a reward is not finite.
        """
        fresh: dict[_Cell, Outcome] = {}
        for outcome in outcomes:
            if not (math.isfinite(outcome.gate) and math.isfinite(outcome.reward)):
                raise ValueError(f"an outcome needs a finite gate and reward: {outcome}")
            cell = (outcome.problem_id, outcome.gate, outcome.sample)
            known = self._cells.get(cell, fresh.get(cell))
            if known is None:
                fresh[cell] = outcome
            elif known != outcome:
                raise _conflict(cell, known, outcome, f"outcomes given to {self.folder}")
        if not fresh:
            return
        rows = [dataclasses.asdict(outcome) for outcome in fresh.values()]
        schema = _SCHEMA.with_metadata({_FINGERPRINT_KEY: self.fingerprint.encode()})
        columns = pa.Table.from_pylist(rows, schema=schema)
        digest = hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]
        _write(
            self.folder / f"part-{digest}.parquet",
            lambda file: pq.write_table(columns, file, write_page_checksum=True),
        )
        self._cells |= fresh

    def outcome(self, problem_id: str, gate: float, *, sample: int = 0) -> Outcome:
        """Look one cell up.

        Raises:
            MissingOutcome: If it has not been generated.
        """
        try:
            return self._cells[problem_id, gate, sample]
        except KeyError:
            raise MissingOutcome(
                f"no outcome of problem {problem_id!r} at gate {gate:g} (sample {sample}) in "
                f"{self.folder}: generate the missing cells first"
            ) from None

    def matrix(
        self,
        problem_ids: Sequence[str],
        gates: Sequence[float],
        column: Literal["correct", "reward"] = "correct",
        *,
        sample: int = 0,
    ) -> Float[np.ndarray, "problems gates"]:
        """One column of the table as float64, problems down and gates across.

        Raises:
            MissingOutcome: Naming the first cell that has not been generated.
        """
        values = [
            [
                float(getattr(self.outcome(problem_id, gate, sample=sample), column))
                for gate in gates
            ]
            for problem_id in problem_ids
        ]
        return np.array(values, dtype=np.float64).reshape(len(problem_ids), len(gates))

    def _merge(self, outcomes: Iterable[Outcome], source: str) -> None:
        for outcome in outcomes:
            cell = (outcome.problem_id, outcome.gate, outcome.sample)
            known = self._cells.setdefault(cell, outcome)
            if known != outcome:
                raise _conflict(cell, known, outcome, source)


def _conflict(cell: _Cell, known: Outcome, other: Outcome, source: str) -> ConflictingOutcome:
    names = [item.name for item in dataclasses.fields(Outcome)]
    differing = [name for name in names if getattr(known, name) != getattr(other, name)]
    problem_id, gate, sample = cell
    return ConflictingOutcome(
        f"problem {problem_id!r} at gate {gate:g} (sample {sample}) has two outcomes that differ "
        f"in {', '.join(differing)} (second one: {source}): something that matters is not in the "
        "fingerprint or a part is foreign, so remove the part that does not belong"
    )


def _read_card(card: Path) -> tuple[str, dict[str, Any]]:
    try:
        content = json.loads(card.read_text(encoding="utf-8"))
        return content["fingerprint"], content["description"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{card} does not name its table's fingerprint ({error!r}): delete it, the next "
            "generating run writes it anew"
        ) from error


def _read_part(part: Path, fingerprint: str) -> list[Outcome]:
    advice = "delete that file and generate again, only its cells are made anew"
    try:
        with pq.ParquetFile(part, page_checksum_verification=True) as file:
            columns = file.read(use_threads=False)
        rows = columns.to_pylist()
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(
            f"outcome part {part} is damaged or incomplete ({reason}): {advice}"
        ) from error
    if not columns.schema.equals(_SCHEMA):
        raise UserError(f"outcome part {part} has other columns than an outcome table: {advice}")
    owner = (columns.schema.metadata or {}).get(_FINGERPRINT_KEY, b"").decode()
    if owner != fingerprint:
        raise UserError(
            f"outcome part {part} was made under fingerprint {owner or 'unknown'}, not "
            f"{fingerprint}: move it out, outcomes of two experiments never mix"
        )
    return [Outcome(**row) for row in rows]


def _write(path: Path, write: Callable[[Any], object]) -> None:
    """Write a file so that its name only ever stands for the whole content."""
    temporary = path.with_name(f".{path.name}.{platform.node()}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            # The rename may reach the disk before the data does.
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes of this machine left; a living writer's file is its own."""
    ours = re.compile(rf"\..+\.{re.escape(platform.node())}\.(\d+)\.tmp")
    for path in folder.glob(".*.tmp"):
        match = ours.fullmatch(path.name)
        if match and not _is_alive(int(match[1])):
            path.unlink(missing_ok=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@runtime_checkable
class OutcomeBackend(Protocol):
    """Whoever can say what gates give on problems."""

    def outcomes(self, problems: Sequence[Problem], gates: Sequence[float]) -> list[Outcome]:
        """The outcome of each problem under the gate at the same position."""
        ...


@runtime_checkable
class GeneratedText(Protocol):
    """What judging needs of a completion."""

    @property
    def text(self) -> str:
        """Generated text, stop string already cut."""
        ...

    @property
    def tokens(self) -> Sequence[int]:
        """Generated token ids."""
        ...

    @property
    def stop_reason(self) -> str:
        """``end_token``, ``stop_string`` or ``length``."""
        ...


def judge(
    problem: Problem,
    gate: float,
    completion: GeneratedText,
    *,
    max_tokens: int,
    rewards: RewardConfig | None = None,
    sample: int = 0,
) -> Outcome:
    """Turn a completion into the outcome of its cell.

    Args:
        problem: The problem that was asked.
        gate: The gate it was asked under.
        completion: What came back; one that stopped by ``length`` counts as truncated.
        max_tokens: The decoding's limit, which a length penalty is measured against.
        rewards: Optional shaping; exact match alone if not given.
        sample: Number of the sample.
    """
    parsed = parse_answer(completion.text, truncated=completion.stop_reason == "length")
    tokens = len(completion.tokens)
    paid = reward(
        parsed,
        problem.answer,
        tokens=tokens,
        max_tokens=max_tokens,
        config=rewards if rewards is not None else RewardConfig(),
    )
    return Outcome(
        problem_id=problem.id,
        gate=float(gate),
        sample=sample,
        completion=completion.text,
        tokens=tokens,
        parsed=parsed.text,
        status=parsed.status,
        correct=is_correct(parsed, problem.answer),
        reward=paid,
        stop_reason=completion.stop_reason,
    )


@dataclass(frozen=True)
class TableBackend:
    """Outcomes looked up in a table; a missing cell raises `MissingOutcome`.

    Attributes:
        table: Where they are looked up.
    """

    table: OutcomeTable

    def outcomes(self, problems: Sequence[Problem], gates: Sequence[float]) -> list[Outcome]:
        """The outcome of each problem under the gate at the same position."""
        return [
            self.table.outcome(problem.id, gate)
            for problem, gate in zip(problems, gates, strict=True)
        ]


@dataclass(frozen=True)
class LiveBackend:
    """Outcomes generated and judged now.

    Attributes:
        generate: Prompts and one gate for each, to one completion for each.
        prompt: A problem to its prompt text.
        max_tokens: The decoding's limit on generated tokens.
        rewards: Optional shaping of the reward.
    """

    generate: Callable[[Sequence[str], Sequence[float]], Sequence[GeneratedText]]
    prompt: Callable[[Problem], str]
    max_tokens: int
    rewards: RewardConfig = field(default_factory=RewardConfig)

    def outcomes(self, problems: Sequence[Problem], gates: Sequence[float]) -> list[Outcome]:
        """The outcome of each problem under the gate at the same position."""
        completions = self.generate([self.prompt(problem) for problem in problems], gates)
        return [
            judge(problem, gate, completion, max_tokens=self.max_tokens, rewards=self.rewards)
            for problem, gate, completion in zip(problems, gates, completions, strict=True)
        ]
