"""Groups, tags and broken tasks of lm-eval: its own table, and no answer is generated twice."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from lm_eval.evaluator import simple_evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from jroute.harness import command
from jroute.harness.model import JaxLM
from jroute.tasks.benchmarks import lookup

TASK = """
tag: t_all
task_alias: pens {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
generation_kwargs: {{until: ["\\n"], max_gen_toks: 6}}
metric_list: [{{metric: !function scores.length, aggregation: mean, higher_is_better: true}}]
task: t_{name}
"""

SCORES = """
import os
def length(predictions=None, references=None, **_):
    if os.path.exists("broken"):
        raise ZeroDivisionError("somebody's metric")
    return float(len(predictions[0]) % 7)
"""

GROUPS = {
    "g_one": """
group: g_one
group_alias: The first
task: [t_a, t_b]
aggregate_metric_list: [{metric: length, weight_by_size: true}]
metadata: {version: 2}
""",
    "g_two": """
group: g_two
task: [t_b, t_c]
aggregate_metric_list: [{metric: length, weight_by_size: false}]
""",
    "g_all": """
group: g_all
task: [g_one, {group: inner, task: [t_c], aggregate_metric_list: [{metric: length}]}]
aggregate_metric_list: [{metric: length, weight_by_size: true}]
""",
}


@pytest.fixture
def user(tmp_path, monkeypatch) -> Path:
    """The directory of a user with tasks of their own, whose data have relative paths."""
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "scores.py").write_text(SCORES)
    for i, name in enumerate("abc"):
        rows = [{"question": f"Tom has {k + i} pens. So", "answer": str(k)} for k in range(2 + i)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        (tasks / f"{name}.yaml").write_text(TASK.format(name=name, data=f"{name}.jsonl"))
    for name, text in GROUPS.items():
        (tasks / f"{name}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    # lm-eval's thousands of files take a minute to index.
    monkeypatch.setattr(lookup, "TaskManager", local_manager)
    return tmp_path


def local_manager(**options: Any) -> TaskManager:
    return TaskManager(**{**options, "include_defaults": False})


def evaluate(model: Path, tasks: str, *more: str, arm: str = "baseline", out: str = "out") -> int:
    options = ["--model-dir", str(model), "--arm", arm, "--output_path", out, "--batch_size", "4"]
    return command.main([*options, "--include_path", "tasks", "--tasks", tasks, *more])


def results_of(arm: str = "baseline", out: str = "out") -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for file in sorted(Path(out, arm).glob("results_*.json")):
        for key, value in json.loads(file.read_text()).items():
            merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged


@pytest.mark.parametrize("names", ["g_all", "t_all", "g_one,g_two"])
def test_they_have_lm_evals_own_table(user, tiny_directory, tiny_lm, tiny_torch, names) -> None:
    assert evaluate(tiny_directory, names, arm="baseline,fixed:1") == 0
    reference: Any = cast(Any, HFLM)(
        pretrained=tiny_torch, tokenizer=tiny_lm.tokenizer, backend="causal", batch_size=1
    )
    expected: dict[str, Any] = {"results": {}, "groups": {}, "n-samples": {}, "group_subtasks": {}}
    for name in names.split(","):  # lm-eval itself refuses a task in two groups
        theirs = cast(Any, simple_evaluate)(
            reference, tasks=[name], task_manager=local_manager(include_path="tasks")
        )
        for key, values in expected.items():
            values.update(theirs.get(key, {}))
    ours = results_of()
    assert {key: ours.get(key, {}) for key in expected} == json.loads(json.dumps(expected))
    assert any(row.get("length,none") for row in ours["results"].values())
    summary = json.loads(next(Path("out").glob("summary_*.json")).read_text())
    assert summary["tasks"].keys() == {"t_a", "t_b", "t_c"}
    assert {t: row["n"] for t, row in summary["tasks"].items()} == {"t_a": 2, "t_b": 3, "t_c": 4}
    for arm in ("baseline", "fixed:1"):
        groups = summary.get("groups", {}).get(arm, {})
        assert groups.keys() == expected["groups"].keys()
    for group, row in summary.get("groups", {}).get("baseline", {}).items():
        assert row["length,none"]["value"] == expected["groups"][group]["length,none"]
    assert sorted(path.name for path in Path("out").iterdir() if path.is_dir()) == [
        *("baseline", "fixed_1", "tasks")
    ]


def test_what_fails_after_generation_keeps_the_answers(
    user, tiny_directory, capsys, monkeypatch
) -> None:
    generated: list[int] = []
    generate = JaxLM._generate

    def counted(self, rows, *rest) -> None:
        generated.append(len(rows))
        generate(self, rows, *rest)

    monkeypatch.setattr(JaxLM, "_generate", counted)
    Path("broken").touch()
    assert evaluate(tiny_directory, "g_one") == 2
    error = capsys.readouterr().err.splitlines()[-1]  # after the progress bar
    assert "cannot be scored: ZeroDivisionError: somebody's metric (scores.py, line 5)" in error
    assert "the 5 answers so far are kept in" in error
    Path("broken").unlink()
    (store,) = Path("out/answers").iterdir()
    lines = store.read_bytes().splitlines(keepends=True)
    damaged = lines[1].replace(b"truncated", b"truncatee")  # and the last one is cut short
    store.write_bytes(b"".join([lines[0], damaged, *lines[2:-1], lines[-1][:-9]]))
    assert evaluate(tiny_directory, "g_one") == 0
    assert generated == [5, 2]
    assert not Path("out/answers").exists()
    assert evaluate(tiny_directory, "g_one", out="anew") == 0
    ours, anew = results_of()["results"], results_of(out="anew")["results"]
    assert ours == anew


def test_what_is_refused_is_told_and_leaves_nothing(user, tiny_directory, capsys) -> None:
    (user / "tasks" / "lost.yaml").write_text(TASK.format(name="lost", data="no.jsonl"))
    choice = TASK.format(name="choice", data="a.jsonl").replace("generate_until", "multiple_choice")
    choice = choice.replace("doc_to_target: answer", "doc_to_target: 0\ntarget_delimiter: ''")
    choice = choice.replace("generation_kwargs", "doc_to_choice: ['', 'b']\n#")
    choice = choice.replace("metric: !function scores.length", "metric: acc")
    (user / "tasks" / "choice.yaml").write_text(choice)
    (user / "config.yaml").write_text("tasks: t_a\nlimit: many\n")
    cases = {
        "lost.yaml: this task cannot be loaded": ["t_lost"],
        "choice.yaml: this task cannot be loaded (IndexError": ["t_choice"],  # by an empty choice
        "--limit is nan": ["t_a", "--limit", "nan"],
        "--limit is 'many'": ["t_a", "--config", "config.yaml"],
        "--batch_size is ²": ["t_a", "--batch_size", "²"],
        "num_fewshot must be greater than or equal to 0": ["t_a", "--num_fewshot", "-1"],
        "temperature must be a finite number": [
            *("t_a", "--gen_kwargs", "do_sample=true,temperature=nan")
        ],
        "max_length must be a valid integer": ["t_a", "--model_args", "max_length=x"],
        "special_tokens must be": ["t_a", "--model_args", "special_tokens=x"],
        "samples.t_a[0] must be": ["t_a", "--samples", '{"t_a": ["x"]}'],
    }
    before = sorted(user.rglob("*"))
    for message, arguments in cases.items():
        assert evaluate(tiny_directory, *arguments, out="new/out") == 2, message
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1, error
        left = [path for path in user.rglob("*") if "__pycache__" not in path.parts]
        assert sorted(left) == before
    assert evaluate(tiny_directory, "t_a", "--trust_remote_code") == 0


@pytest.mark.parametrize(
    ("field", "when_read", "message"),
    [
        ("process_results", "", "cannot be scored: SystemExit: 0 (own.py, line 4)"),
        ("aggregation", "", "cannot be scored: SystemExit: 0 (own.py, line 4)"),
        ("doc_to_text", "", "this task cannot be loaded (SystemExit: 0)"),
        ("process_docs", "", "this task cannot be loaded (SystemExit: 0)"),
        ("process_docs", "sys.exit(0)", "this task cannot be loaded (SystemExit: 0)"),
    ],
)
def test_code_of_a_task_that_ends_the_process_is_an_error(
    user, tiny_directory, capsys, field, when_read, message
) -> None:
    leave = f"import sys\n{when_read}\ndef leave(*_, **__):\n    sys.exit(0)\n"
    (user / "tasks" / "own.py").write_text(leave)
    text = TASK.format(name="a", data="a.jsonl")
    if field == "aggregation":
        text = text.replace("aggregation: mean", "aggregation: !function own.leave")
    else:  # the last of equal keys counts
        text += f"{field}: !function own.leave\n"
    (user / "tasks" / "a.yaml").write_text(text)
    assert evaluate(tiny_directory, "t_a") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert ("the 2 answers so far are kept in" in error) == ("scored" in message)


def test_the_place_named_is_the_tasks_own_even_below_a_library(
    user, tiny_directory, capsys
) -> None:
    code = "import json\ndef scores(doc, results):\n    return json.loads('broken')\n"
    (user / "tasks" / "own.py").write_text(code)
    text = TASK.format(name="a", data="a.jsonl") + "process_results: !function own.scores\n"
    (user / "tasks" / "a.yaml").write_text(text)
    assert evaluate(tiny_directory, "t_a") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "cannot be scored: JSONDecodeError: " in error and "(own.py, line 3)" in error


def test_a_group_within_itself_is_refused_at_once(
    user, tiny_directory, capsys, monkeypatch
) -> None:
    loops = {
        "g_self": "group: g_self\ntask: [g_self]\n",
        "g_x": "group: g_x\ntask: [t_a, {group: g_y}]\n",
        "g_y": "group: g_y\ntask: [{group: inner, task: [t_b, g_x]}]\n",
        "g_alias": "group: g_alias\ntask: &all [t_a, *all, {task: g_self}]\n",
    }
    for name, text in loops.items():
        (user / "tasks" / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(lookup, "TaskManager", None)  # not even lm-eval's index is made
    for names, message in {
        "g_self": "g_self.yaml: the group g_self contains itself (g_self > g_self)",
        "tasks/g_self.yaml": "g_self.yaml: the group g_self contains itself (g_self > g_self)",
        "g_x": "g_x.yaml: the group g_x contains itself (g_x > g_y > g_x)",
        "t_a,g_alias": "g_self.yaml: the group g_self contains itself",
    }.items():
        assert evaluate(tiny_directory, names) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not Path("out").exists()
