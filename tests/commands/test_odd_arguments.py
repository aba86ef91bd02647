"""Odd values of options: every command refuses them with one sentence that names the option."""

import importlib

import pytest

PATHS = ["", "a\0b", "a\ud800", "x" * 300]
NUMBERS = ["nan", "inf", "-1", "1e9", "1.5", "", "²", "٣", "9" * 5000]

COMMANDS: list[tuple[str, list[str], str, list[str]]] = [
    ("convert", ["--source", "absent"], "--out", PATHS),
    ("convert", ["--out", "new"], "--to-hf", PATHS),
    ("convert", ["--out", "new"], "--source", ["", "a\ud800"]),
    ("convert", ["--out", "new", "--source", "absent", "--verify"], "--prompts", PATHS),
    ("convert", ["--out", "new", "--source", "absent"], "--dtype", ["", "x" * 5000]),
    ("evaluate", [], "--run", PATHS),
    ("evaluate", ["--run", "absent", "--live"], "--problems", [*NUMBERS, "0", "1"]),
    ("evaluate", ["--run", "absent", "--live"], "--arms", ["", "a\ud800"]),
    ("compare", ["a"], "RUN", PATHS),
    ("compare", ["a", "b"], "--report", PATHS),
    ("compare", ["a", "b"], "--replicates", [*NUMBERS, "99", "10000001"]),
    ("compare", ["a", "b"], "--seed", NUMBERS),
    ("calibrate", [], "--models", PATHS),
    ("calibrate", [], "--plain", PATHS),
    ("calibrate", [], "--out", PATHS),
    ("calibrate", [], "--config", PATHS),
    ("calibrate", [], "--report", PATHS),
    ("calibrate", [], "--permutations", [*NUMBERS, "0"]),
    ("calibrate", [], "--tables", [*NUMBERS, "0"]),
    ("calibrate", [], "--parts", ["", "other"]),
]


@pytest.mark.parametrize(("name", "others", "option", "values"), COMMANDS)
def test_an_odd_value_is_one_sentence(
    tmp_path, monkeypatch, capsys, name, others, option, values
) -> None:
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(f"jroute.{name}").main
    for value in values:
        given = value if option == "RUN" else f"{option}={value}"
        assert main([*others, given]) == 2, value
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {option}"), line
        assert len(line) < 500
    assert list(tmp_path.iterdir()) == []


def test_odd_paths_of_the_harness_are_refused_before_a_model_is_read(
    tmp_path, monkeypatch, capsys
) -> None:
    from jroute.harness.command import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    for model in ("--run", "--model-dir"):
        others = [model, "absent", "--arm", "rl", "--tasks", "test"]
        for option in ("--output_path", "--include_path", model):
            wrong = PATHS if option != "--output_path" else [*PATHS, "/", "file", "file/x.json"]
            for value in wrong:
                assert main([*others, "--output_path", "new", f"{option}={value}"]) == 2
                line = capsys.readouterr().err.splitlines()[-1]
                assert line.startswith(f"error: {option}"), line
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_a_command_without_its_options_says_which(capsys) -> None:
    main = importlib.import_module("jroute.convert").main
    assert main([]) == 2
    assert capsys.readouterr().err.startswith("error: the following arguments are required: --out")


@pytest.mark.parametrize("path", ["/", "file", "file/x"])
@pytest.mark.parametrize(
    ("name", "others", "option"),
    [
        ("train", ["--model", "absent"], "run"),
        ("train", ["--model", "absent", "--run", "new"], "outcomes"),
        ("outcomes.__main__", ["--model", "absent"], "run"),
        ("probe.__main__", ["--model", "absent", "--run", "new"], "out"),
        ("ablate.__main__", ["--model", "absent", "--presets", "[mvp]"], "run"),
        ("report.__main__", ["--run", "absent"], "out"),
    ],
)
def test_where_nothing_can_be_written_is_refused_before_the_model_is_read(
    tmp_path, monkeypatch, capsys, name, others, option, path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    main = importlib.import_module(f"jroute.{name}").main
    assert main([*others, f"--{option}", path]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {option} is '") and f"{path}'" in line, line
    assert [file.name for file in tmp_path.iterdir()] == ["file"]
