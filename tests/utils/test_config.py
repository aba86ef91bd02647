"""The generic part of the configuration, on small dataclasses of its own."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jroute.utils import config
from jroute.utils.errors import UserError


@dataclass(frozen=True)
class Optimiser:
    """The optimiser.

    Attributes:
        learning_rate: Step size of Adam.
        betas: Decay rates of its moments.
        steps: Updates in all.
    """

    learning_rate: float = 3e-4
    betas: tuple[float, ...] = (0.9, 0.999)
    steps: int = 100


@dataclass(frozen=True)
class Learner:
    """The learner.

    Attributes:
        optimiser: How it descends.
        loss: Which loss.
        anneal: Whether the step size falls.
        patience: Epochs without a gain, or never stop.
        stop: Strings that end a text.
    """

    optimiser: Optimiser = Optimiser(steps=7)
    loss: Literal["ppo", "exact"] = "ppo"
    anneal: bool = False
    patience: int | None = 5
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.patience == 0:
            raise UserError("learner.patience must not be 0")


@dataclass(frozen=True)
class Trial:
    """A trial.

    Attributes:
        run: Its folder.
        seed: Its seed.
        learner: What learns.
    """

    run: str
    seed: int = 0
    learner: Learner = field(default_factory=Learner)


@dataclass(frozen=True)
class Options:
    """Options of a command.

    Attributes:
        resume: Whether to go on.
    """

    resume: bool = False


def write(folder: Path, text: str) -> str:
    path = folder / "trial.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def refusal(*argv: str) -> str:
    with pytest.raises(UserError) as caught:
        config.parse(Trial, argv, prog="trial")
    return str(caught.value)


def test_file_over_default_and_command_line_over_file(tmp_path: Path):
    path = write(
        tmp_path,
        "run: a\nlearner:\n  patience: null\n  optimiser:\n    steps: 1_000\n    betas: [0, 1]\n",
    )
    argv = ["--seed=3", "--config", path, "--learner.optimiser.learning_rate", "3e-5"]
    trial = config.parse(Trial, argv, prog="trial")
    assert trial == Trial(
        run="a",
        seed=3,
        learner=Learner(
            optimiser=Optimiser(learning_rate=3e-5, betas=(0.0, 1.0), steps=1000), patience=None
        ),
    )
    assert isinstance(trial.learner.optimiser.betas[0], float)
    # An option wins wherever it stands.
    for argv in (["--config", path, "--run", "b"], ["--run", "b", "--config", path]):
        assert config.parse(Trial, argv, prog="trial").run == "b"


def test_later_file_wins_key_by_key(tmp_path: Path):
    (tmp_path / "base.yaml").write_text("run: a\nseed: 1\nlearner: {loss: exact, anneal: true}\n")
    (tmp_path / "more.yaml").write_text("seed: 2\nlearner: {anneal: false}\n")
    argv = ["--config", str(tmp_path / "base.yaml"), "--config", str(tmp_path / "more.yaml")]
    trial = config.parse(Trial, argv, prog="trial")
    assert trial == Trial(run="a", seed=2, learner=Learner(loss="exact", anneal=False))


def test_section_defaults_come_from_their_owner(tmp_path: Path):
    trial = config.load(Trial, write(tmp_path, "run: a\nlearner:\n"))
    assert trial.learner.optimiser.steps == 7


@pytest.mark.parametrize(
    ("option", "text", "read", "value"),
    [
        ("learner.optimiser.learning_rate", "3e-4", "learning_rate", 3e-4),
        ("learner.optimiser.learning_rate", "-1e-4", "learning_rate", -1e-4),
        ("learner.optimiser.steps", "1_000", "steps", 1000),
        ("learner.optimiser.betas", "[-1, 0.5]", "betas", (-1.0, 0.5)),
        ("learner.optimiser.betas", "[]", "betas", ()),
        ("learner.patience", "null", "patience", None),
        ("learner.anneal", "true", "anneal", True),
        ("learner.stop", "['1', \"a b\"]", "stop", ("1", "a b")),
        ("run", "12", "run", "12"),
        ("run", "--odd", "run", "--odd"),
    ],
)
def test_command_line_values(option: str, text: str, read: str, value: object):
    base = [] if option == "run" else ["--run", "a"]
    for argv in ([f"--{option}", text], [f"--{option}={text}"]):
        trial = config.parse(Trial, [*base, *argv], prog="trial")
        owners = [trial, trial.learner, trial.learner.optimiser]
        got = next(getattr(owner, read) for owner in owners if hasattr(owner, read))
        assert got == value
        assert type(got) is type(value)


def test_load_with_overrides(tmp_path: Path):
    path = write(tmp_path, "run: a\nseed: 1\n")
    assert config.load(Trial, Path(path), ["--seed", "2"]) == Trial(run="a", seed=2)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
INTEGERS = st.integers(-(2**63), 2**63 - 1)


@given(
    st.builds(
        Trial,
        run=TEXTS
        | st.sampled_from(["1e-3", "12", "null", "true", "[a]", "a: b", "0x1f", " ", "~"]),
        seed=INTEGERS,
        learner=st.builds(
            Learner,
            optimiser=st.builds(
                Optimiser,
                learning_rate=FLOATS,
                betas=st.lists(FLOATS, max_size=3).map(tuple),
                steps=INTEGERS,
            ),
            loss=st.sampled_from(["ppo", "exact"]),
            anneal=st.booleans(),
            patience=st.none() | st.integers(1, 2**63 - 1),
            stop=st.lists(TEXTS | st.sampled_from(["\n\n", "1", "null"]), max_size=3).map(tuple),
        ),
    )
)
def test_dump_round_trips(tmp_path_factory: pytest.TempPathFactory, trial: Trial):
    path = tmp_path_factory.mktemp("dump") / "trial.yaml"
    path.write_bytes(config.dump(trial).encode())
    assert config.load(Trial, path) == trial


def test_instances_are_frozen():
    trial = config.parse(Trial, ["--run", "a"], prog="trial")
    with pytest.raises(dataclasses.FrozenInstanceError):
        trial.learner.optimiser.steps = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("text", "unknown", "nearest"),
    [
        ("run: a\nsede: 1\n", "sede", "seed"),
        ("learner: {patiense: 1}\n", "learner.patiense", "learner.patience"),
        (
            "learner: {optimiser: {setps: 1}}\n",
            "learner.optimiser.setps",
            "learner.optimiser.steps",
        ),
        ("lerner: {loss: ppo}\n", "lerner", "learner"),
        ("learning_rate: 1\n", "learning_rate", "learner.optimiser.learning_rate"),
    ],
)
def test_unknown_key_names_file_and_nearest(tmp_path: Path, text: str, unknown: str, nearest: str):
    path = write(tmp_path, text)
    expected = f"{path}: unknown key {unknown}; the nearest known key is {nearest}"
    assert refusal("--run", "a", "--config", path) == expected


def test_unknown_option_names_nearest():
    assert refusal("--run", "a", "--learner.optimizer.step", "1") == (
        "unknown option --learner.optimizer.step; "
        "the nearest known option is --learner.optimiser.steps"
    )
    # A shortened name is a mistyped one.
    assert "nearest known option is --seed" in refusal("--run", "a", "--see", "1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1.5", "seed must be a whole number, not 1.5"),
        ("seed: null", "seed must be a whole number, not null"),
        ("seed: true", "seed must be a whole number, not True"),
        ("run: 3", "run must be a text, not 3"),
        ("learner: {loss: a2c}", "learner.loss must be one of ppo, exact, not 'a2c'"),
        ("learner: {anneal: 1}", "learner.anneal must be true or false, not 1"),
        ("learner: {patience: x}", "learner.patience must be a whole number or null, not 'x'"),
        (
            "learner: {optimiser: {betas: [1, x]}}",
            "learner.optimiser.betas must be a list of numbers, not [1, 'x']",
        ),
        (
            "learner: {optimiser: {learning_rate: fast}}",
            "learner.optimiser.learning_rate must be a number, not 'fast'",
        ),
        ("learner: 3", "learner is a section of keys, not the value 3"),
    ],
)
def test_wrong_type_in_file(tmp_path: Path, text: str, message: str):
    path = write(tmp_path, text)
    given = [] if text.startswith("run") else ["--run", "a"]
    assert refusal("--config", path, *given) == f"{path}: {message}"


def test_wrong_type_on_command_line(tmp_path: Path):
    path = write(tmp_path, "run: a\nseed: 1\n")
    message = "--seed must be a whole number, not '1.5'"
    assert refusal("--config", path, "--seed", "1.5") == message


@pytest.mark.parametrize(
    ("option", "text", "expected"),
    [
        ("learner.optimiser.learning_rate", ".nan", "must be finite, not '.nan'"),
        ("learner.optimiser.learning_rate", "-.inf", "must be finite, not '-.inf'"),
        ("learner.optimiser.learning_rate", "1e999", "must be finite, not '1e999'"),
        ("learner.optimiser.learning_rate", "9" * 5000, "must be a number, not '9999"),
        ("learner.optimiser.learning_rate", "", "must be a number, not ''"),
        ("learner.optimiser.betas", "[0.9, .nan]", "must be finite, not '[0.9, .nan]'"),
        ("learner.optimiser.betas", "[" * 5000, "must be a list of numbers, not '[[[["),
        ("seed", str(2**63), "must be a number of at most 64 bits, not '9223372036854775808'"),
        ("seed", "9" * 5000, "must be a whole number, not '9999"),
        ("learner.optimiser.learning_rate", "9" * 400, "must be a number of at most 64 bits, not"),
        ("seed", "²", "must be a whole number, not '²'"),
        ("seed", "!!int x", "must be a whole number, not '!!int x'"),
        ("seed", "!!timestamp x", "must be a whole number, not '!!timestamp x'"),
        ("seed", "*a", "must be a whole number, not '*a'"),
        ("learner.anneal", '"\\UFFFFFFFF"', "must be true or false, not "),
        ("run", "a\0b", "must be UTF-8 text without NUL characters, not 'a\\x00b'"),
        ("run", "a\udcff", "must be UTF-8 text without NUL characters, not 'a\\udcff'"),
        ("learner.stop", '["\\ud800"]', "must be UTF-8 text without NUL characters"),
    ],
)
def test_unusable_values(tmp_path: Path, option: str, text: str, expected: str):
    message = refusal("--run", "a", f"--{option}={text}")
    assert message.startswith(f"--{option} {expected}") and len(message) < 300


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("learner: {optimiser: {learning_rate: .nan}}", "learning_rate must be finite, not nan"),
        ("learner: {optimiser: {betas: [.inf]}}", "betas must be finite, not [inf]"),
        (
            "seed: 0x" + "f" * 90,
            "seed must be a number of at most 64 bits, not a number of 360 bits",
        ),
        ("seed: 2026-01-31", "seed must be a whole number, not '2026-01-31'"),
        ('learner: {stop: ["\\0"]}', "stop must be UTF-8 text without NUL characters"),
    ],
)
def test_unusable_values_in_a_file(tmp_path: Path, text: str, expected: str):
    assert expected in refusal("--run", "a", "--config", write(tmp_path, text))


def test_refusal_of_a_section_says_where_it_was_read(tmp_path: Path):
    path = write(tmp_path, "run: a\nlearner: {patience: 0}\n")
    assert refusal("--config", path) == f"learner.patience must not be 0 (read from {path})"


def test_malformed_command_lines():
    assert refusal() == "run has no value: give --run or set it in a configuration file"
    assert refusal("--run") == "--run needs a value"
    assert refusal("a") == "unexpected argument 'a'; options look like --section.field 1"
    assert refusal("--learner.optimiser", "1") == (
        "--learner.optimiser is a section; set a field of it: --learner.optimiser.learning_rate, "
        "--learner.optimiser.betas, --learner.optimiser.steps"
    )


def test_files_that_cannot_be_read(tmp_path: Path):
    missing = str(tmp_path / "none.yaml")
    assert (
        refusal("--config", missing) == f"{missing} is missing; give an existing configuration file"
    )
    assert "is not a regular file" in refusal("--config", str(tmp_path))
    for text, message in [
        ("run: [a\nseed: 1", ", line 2: not valid YAML: "),
        ("run: a\nseed: 1\nseed: 2\n", ", line 3: not valid YAML: duplicate key seed"),
        ("- a", ": must be a mapping of keys to values, not ['a']"),
    ]:
        path = write(tmp_path, text)
        assert refusal("--config", path).startswith(f"{path}{message}")


def test_extra_options_stay_out_of_the_experiment(tmp_path: Path):
    path = write(tmp_path, "run: a\n")
    argv = ["--config", path, "--resume", "true"]
    assert config.parse(Trial, argv, prog="trial", extra=Options) == (Trial("a"), Options(True))
    path = write(tmp_path, "run: a\nresume: true\n")
    with pytest.raises(UserError, match="unknown key resume"):
        config.parse(Trial, ["--config", path], prog="trial", extra=Options)


def test_command_without_files():
    assert config.parse(Options, ["--resume=true"], prog="x", files=False) == Options(True)
    with pytest.raises(UserError, match="unknown option --config"):
        config.parse(Options, ["--config", "a.yaml"], prog="x", files=False)


def test_help_lists_every_field_with_its_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write(tmp_path, "run: a\nlearner: {optimiser: {steps: 1234}}\n")
    with pytest.raises(SystemExit) as caught:
        config.parse(Trial, ["--config", path, "--help"], prog="python -m jroute.trial")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "usage: python -m jroute.trial [--config FILE]" in shown
    assert "Step size of Adam. (type: float, default: 0.0003)" in shown
    assert "Updates in all. (type: int, default: 1234)" in shown
    for key in ("run", "seed", "learner.loss", "learner.patience", "learner.optimiser.betas"):
        assert f"--{key} " in shown


def test_help_keeps_the_lines_of_what_a_command_does(capsys: pytest.CaptureFixture[str]):
    does = "Tries.\n\n    python -m jroute.trial --rate 1\n    python -m jroute.trial --rate 2\n"
    with pytest.raises(SystemExit):
        config.parse(Trial, ["--help"], prog="python -m jroute.trial", description=does)
    assert does in capsys.readouterr().out
