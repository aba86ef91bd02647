"""The command behind ``scripts/lm_eval_jax.py``: judge arms with lm-evaluation-harness."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from jroute.checkpoint.origin import gguf_quantisation
from jroute.harness import comparison, lm_eval_adapter
from jroute.harness.answer_store import AnswerStores
from jroute.harness.cache_names import folder_name
from jroute.harness.options import EvaluationOptions, parse_args
from jroute.harness.policy import ArmPolicy
from jroute.harness.runner import ArmResult, Output, evaluate_arm
from jroute.harness.subject import Subject, open_subject
from jroute.harness.suites import Suite, check_prompt_options, make_suites
from jroute.tasks import benchmarks
from jroute.utils.cli import command
from jroute.utils.files import write_json

_LONGEST = 120
"""Characters of the names of tasks in the name of the summary."""


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate arm by arm and print their comparison."""
    options = parse_args(argv)
    with (
        benchmarks.data_folder(options.data),
        lm_eval_adapter.quiet(loud="verbosity" in options.given),
    ):
        subject = open_subject(options)
        check_prompt_options(options, has_run=subject.run is not None)
        policies = subject.policies(options.arms)  # refuses an unknown arm before any work
        with Output.opened(options.output_path or subject.results) as output:
            suites = make_suites(subject, options, output.tasks)
            stores = AnswerStores(output.answers)
            with stores.kept_until_done():
                evaluate(subject, policies, suites, options, output, stores)


def evaluate(
    subject: Subject,
    policies: Mapping[str, ArmPolicy],
    suites: Sequence[Suite],
    options: EvaluationOptions,
    output: Output,
    stores: AnswerStores,
) -> None:
    """Evaluate arm by arm, then write and print all of them together."""
    results: dict[str, ArmResult] = {}
    first = next(iter(policies))
    for arm, policy in policies.items():
        results[arm] = evaluate_arm(subject, policy, suites, options, output, stores)
        comparison.check_same_conditions(first, results[first].tasks, arm, results[arm].tasks)
    path = output.folder / summary_name(options)
    tasks = {arm: result.tasks for arm, result in results.items()}
    groups = {arm: result.groups for arm, result in results.items()}
    payload = {"model": subject.lm.fingerprint, "limit": options.lm_eval.limit}
    quantisation = gguf_quantisation(subject.lm.directory)
    if quantisation is not None:
        payload["gguf_quantisation"] = quantisation
    if subject.run is not None:
        payload["outcomes"] = subject.run.outcomes.table.fingerprint
    write_json(path, {**payload, **comparison.summary(tasks, groups)})
    print(comparison.results_table(tasks, groups))
    if quantisation is not None:
        print(f"the model's weights were quantised ({quantisation}), not the released ones")
    print(f"\nwritten: {path}")
    for arm in results:
        print(f"written: {output.folder / folder_name(arm)}/")


def summary_name(options: EvaluationOptions) -> str:
    """Return the name of the file that has all arms together."""
    limit = options.lm_eval.limit
    tasks = "_".join(Path(task).stem for task in options.tasks)
    if len(tasks) > _LONGEST:
        tasks = f"{tasks[:_LONGEST]}-{hashlib.sha256(tasks.encode()).hexdigest()[:8]}"
    return f"summary_{tasks}{f'_limit{limit:g}' if limit else ''}.json"
