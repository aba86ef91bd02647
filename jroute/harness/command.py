"""The command behind ``scripts/lm_eval_jax.py``: judge arms with lm-evaluation-harness."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jroute.harness import comparison, lm_eval_adapter
from jroute.harness.cache_names import folder_name
from jroute.harness.comparison import TaskResult
from jroute.harness.options import EvaluationOptions, parse_args
from jroute.harness.runner import Output, evaluate_arm
from jroute.harness.subject import Subject, open_subject
from jroute.harness.suites import check_prompt_options, make_suites
from jroute.tasks import benchmarks
from jroute.utils.cli import command
from jroute.utils.files import write_json


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
        output = Output.create(options.output_path or subject.folder / "lm_eval")
        suites = make_suites(subject, options, output.folder / "tasks")
        results: dict[str, dict[str, TaskResult]] = {}
        first = next(iter(policies))
        for arm, policy in policies.items():
            results[arm] = evaluate_arm(subject, policy, suites, options, output)
            comparison.check_same_conditions(first, results[first], arm, results[arm])
    path = output.folder / summary_name(options)
    write_summary(path, subject, options, results)
    print(comparison.results_table(results))
    print(f"\nwritten: {path}")
    for arm in results:
        print(f"written: {output.folder / folder_name(arm)}/")


def summary_name(options: EvaluationOptions) -> str:
    """Return the name of the file that has all arms together."""
    limit = options.lm_eval.limit
    tasks = "_".join(Path(task).stem for task in options.tasks)
    return f"summary_{tasks}{f'_limit{limit:g}' if limit else ''}.json"


def write_summary(
    path: Path,
    subject: Subject,
    options: EvaluationOptions,
    results: Mapping[str, Mapping[str, TaskResult]],
) -> None:
    """Write all arms together as JSON."""
    payload = {"model": subject.lm.fingerprint, "limit": options.lm_eval.limit}
    if subject.run is not None:
        payload["outcomes"] = subject.run.outcomes.table.fingerprint
    write_json(path, {**payload, **comparison.summary(results)})
