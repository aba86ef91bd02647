"""Tasks that ship for lm-eval, filters, and a benchmark's own prompt as an experiment's."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from lm_eval.filters import build_filter_ensemble

from jroute.tasks import TaskConfig, load_problems, synthetic
from jroute.tasks.benchmarks import find_tasks, load_tasks, local_data
from jroute.tasks.benchmarks.filters import BoxedFilter
from jroute.tasks.benchmarks.prompting import benchmark_prompt
from jroute.tasks.prompts import PLACEHOLDER, PromptConfig, meaning, render, render_chat
from jroute.tasks.tokenizer import load_tokenizer
from jroute.utils.errors import UserError
from jroute.utils.keys import stored
from tests.model.tiny import ASSET
from tests.support import data_dir


def load(folder: Path, *names: str) -> list[Any]:
    specs, manager = find_tasks(names)
    with local_data(None, folder):
        return load_tasks(manager, specs)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict[str, Any]:
    """Tasks with data from outside the repository."""
    data_dir()
    loaded = load(tmp_path_factory.mktemp("data"), "gsm8k", "gsm8k_cot_llama", "svamp_cot_llama")
    return {task.config.task: task for task in loaded}


# Tasks that ship ----------------------------------------------------------------------------------


def test_svamp_is_all_of_svamp_and_scored_like_its_sibling(tasks) -> None:
    svamp, sibling = tasks["svamp_cot_llama"], tasks["gsm8k_cot_llama"]
    rows = json.loads((data_dir() / "svamp" / "SVAMP.json").read_text())
    docs = list(svamp.eval_docs)
    assert len(docs) == len(rows) == 1000
    by_question = {}
    for row in rows:
        body = row["Body"].strip()
        by_question[f"{body}{'' if body.endswith('.') else '.'} {row['Question'].strip()}"] = row
    for doc in docs:
        row = by_question[doc["question"]]
        assert svamp.doc_to_target(doc) == str(int(row["Answer"]))
    for key in ("doc_to_text", "filter_list", "metric_list", "generation_kwargs", "num_fewshot"):
        assert svamp.config[key] == sibling.config[key]
    assert svamp.doc_to_text(docs[0]) == sibling.doc_to_text({"question": docs[0]["question"]})
    assert svamp.fewshot_cfg.samples == sibling.fewshot_cfg.samples
    assert svamp.VERSION == 1.0
    # What is right counts, what is wrong does not.
    svamp.build_all_requests(limit=20)
    for i, request in enumerate(svamp.instances):
        request.resps = [f"So 3 + 4 = 7. The final answer is {docs[i]['answer']}{'0' * (i % 2)}."]
    svamp.apply_filters()
    for i, request in enumerate(svamp.instances):
        for answer in request.filtered_resps.values():
            right = svamp.process_results(docs[i], [answer])["exact_match"]
            assert right == (i % 2 == 0 or docs[i]["answer"] == "0")


def test_the_tiny_models_tasks_are_its_problems(tmp_path) -> None:
    for name, task in zip(("test", "ood"), load(tmp_path, "tiny_test", "tiny_ood"), strict=True):
        problems = synthetic.problems(name, 1000, 0)
        assert task.eval_docs["question"] == [problem.question for problem in problems]
        doc = task.eval_docs[0]
        task.build_all_requests(limit=1)
        (request,) = task.instances
        assert request.args[0] == problems[0].question
        request.resps = [f"#### {doc['answer']}"]
        task.apply_filters()
        assert task.process_results(doc, [request.filtered_resps["jroute"]])["exact_match"] == 1


def test_tasks_are_looked_up_by_name_where_they_should_be(tmp_path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "a.yaml").write_text("task: mine\n")
    (own / "b.yaml").write_text("task: gsm8k\n")  # in place of lm-eval's, as lm-eval has it
    specs, _ = find_tasks(["mine", "gsm8k", "svamp_cot_llama"], own)
    assert specs[:2] == [str(own / "a.yaml"), str(own / "b.yaml")]
    assert specs[2].endswith("shipped/svamp_cot_llama.yaml")
    with pytest.raises(UserError, match=r"did you mean svamp_cot_llama\?"):
        find_tasks(["svamp_cot_lama"])
    with pytest.raises(UserError, match="there is no folder"):
        find_tasks(["mine"], tmp_path / "nowhere")


def test_the_box_is_read_by_a_filter_of_its_own() -> None:
    cases = {
        "$$\n\\boxed{18}\\n$$": "18",
        "so $\\boxed{18}$.": "18",
        "\\boxed{1} then \\boxed{\\$1,250.00}": "1250",
        "\\boxed{\\frac{1}{3}}": "1/3",
        "\\boxed{x = 7}": "7",
        "\\boxed{\\text{no}}": "\\text{no}",
        "<think>\\boxed{3}</think> It is 4.": "[invalid]",
        "#### 18": "[invalid]",
        "\\boxed{18": "[invalid]",
    }
    assert BoxedFilter().apply([[text] for text in cases], [{}] * len(cases)) == [
        [answer] for answer in cases.values()
    ]
    build_filter_ensemble("boxed", [("jroute_boxed", None)])  # lm-eval knows it


# A benchmark's own prompt -------------------------------------------------------------------------

TOKENIZER = load_tokenizer(ASSET)


def contexts(task: Any, config: PromptConfig, limit: int) -> list[str]:
    """What lm-eval itself asks."""

    def chat(messages: Any, add_generation_prompt: bool = True) -> str:
        return render_chat(
            messages,
            TOKENIZER,
            enable_thinking=False,
            add_generation_prompt=add_generation_prompt,
        )

    task.set_fewshot_seed(1234)
    task.set_config("num_fewshot", config.num_fewshot)
    task.build_all_requests(
        limit=limit,
        apply_chat_template=config.chat,
        fewshot_as_multiturn=config.chat and config.multiturn,
        system_instruction=config.system or None,
        chat_template=chat if config.chat else None,
    )
    return [request.args[0] for request in task.instances]


@pytest.mark.parametrize(
    "config",
    [
        PromptConfig(benchmark="gsm8k_cot_llama", num_fewshot=8),
        PromptConfig(benchmark="gsm8k_cot_llama", num_fewshot=2, multiturn=False, system="Hm."),
        PromptConfig(benchmark="gsm8k_cot_llama", num_fewshot=1, chat=False),
        PromptConfig(benchmark="gsm8k", num_fewshot=5, chat=False),
        PromptConfig(benchmark="svamp_cot_llama", num_fewshot=0),
    ],
    ids=["headline", "one turn", "raw", "drawn", "svamp"],
)
def test_an_experiment_asks_what_the_benchmark_asks(tasks, config) -> None:
    limit = 5
    theirs = contexts(tasks[config.benchmark], config, limit)
    name: Any = config.benchmark.split("_")[0]
    problems = load_problems(TaskConfig(name=name, limit=limit), "test")
    assert [render(p.question, config, TOKENIZER) for p in problems] == theirs
    assert len(set(theirs)) == limit


def test_drawn_examples_of_other_questions_are_their_own(tasks) -> None:
    config = PromptConfig(benchmark="gsm8k", chat=False)
    train = load_problems(TaskConfig(name="gsm8k", limit=3), "train")
    first = [render(p.question, config, TOKENIZER) for p in train]
    benchmark_prompt.cache_clear()
    for problem, prompt in reversed(list(zip(train, first, strict=True))):
        assert render(problem.question, config, TOKENIZER) == prompt  # whatever was asked before
        assert prompt.endswith(f"\n\nQuestion: {problem.question}\nAnswer:")
        assert prompt.count("Question: ") == 6 and prompt.count(problem.question) == 1
    assert len({prompt.split("Question: ")[1] for prompt in first}) == len(first)


def test_another_wording_is_another_meaning(monkeypatch) -> None:
    config = PromptConfig(benchmark="gsm8k_cot_llama", num_fewshot=0)
    plain = PromptConfig()
    # Fields that say how a benchmark asks say nothing here: tables made before there were any stay.
    said = {"template": "{question}", "system": "", "chat": True, "enable_thinking": False}
    assert meaning(plain, TOKENIZER) == said
    data_dir()
    before = meaning(config, TOKENIZER)
    # Nor does a field at its default that tables made before it was there do not know.
    fields = {key: value for key, value in stored(config).items() if key != "special_tokens"}
    assert before[0] == fields and PLACEHOLDER in before[1]
    benchmark_prompt.cache_clear()
    benchmark = benchmark_prompt("gsm8k_cot_llama", 0)
    monkeypatch.setattr(benchmark.task.config, "doc_to_text", "Now: {{question}}")
    assert meaning(config, TOKENIZER) != before
    benchmark_prompt.cache_clear()


def test_benchmarks_that_cannot_be_asked_are_told(monkeypatch, tmp_path) -> None:
    for wrong, message in {
        ("t {question}", "gsm8k", -1): "both set",
        (PLACEHOLDER, "", 3): "only a benchmark has",
        (PLACEHOLDER, "gsm8k", -2): "num_fewshot is -2",
    }.items():
        template, benchmark, shots = wrong
        with pytest.raises(UserError, match=message):
            PromptConfig(template=template, benchmark=benchmark, num_fewshot=shots)
    with pytest.raises(UserError, match="no task named 'gsm9k'"):
        render("1?", PromptConfig(benchmark="gsm9k"), TOKENIZER)
    (tmp_path / "docs.jsonl").write_text('{"other": "1", "answer": "2"}\n')
    task = {"task": "odd", "dataset_path": "json", "doc_to_text": "{{other}}", "test_split": "test"}
    task |= {"dataset_kwargs": {"data_files": {"test": str(tmp_path / "docs.jsonl")}}}
    task |= {"doc_to_target": "answer", "output_type": "generate_until"}
    (tmp_path / "odd.yaml").write_text(json.dumps(task))
    with pytest.raises(UserError, match="must name a task whose documents have a field 'question'"):
        render("1?", PromptConfig(benchmark=str(tmp_path / "odd.yaml")), TOKENIZER)
    monkeypatch.setitem(os.environ, "JROUTE_DATA", "")
    benchmark_prompt.cache_clear()
    with pytest.raises(UserError, match=r"task gsm8k_cot_llama cannot be loaded .*\$JROUTE_DATA"):
        render("1?", PromptConfig(benchmark="gsm8k_cot_llama"), TOKENIZER)
