"""Train and judge the controllers of an experiment.

    python -m jroute.train --config configs/tiny.yaml [--run DIR] [--ppo.learning_rate 3e-4 ...]
    python -m jroute.train --config … --plan

A routing whose gates do nothing is refused (``python -m jroute.probe`` shows what they do). With
``--mixing.method gradient`` or ``search`` its mixing weights are learned first, the base frozen.
Repeat the same command to resume an interrupted run. ``--plan`` prints
what the run would take, and stops. ``--track wandb`` sends training curves to Weights & Biases too.
"""

from collections.abc import Sequence

from jroute.distributed.processes import started_as_several
from jroute.experiment.config import Experiment
from jroute.observe.scalars import check_tracker
from jroute.utils.cli import PlanOption, command, run_command
from jroute.utils.config import parse
from jroute.utils.errors import UserError
from jroute.utils.paths import output_folder


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, train, print."""
    experiment, options = parse(
        Experiment,
        argv,
        prog="python -m jroute.train",
        description=__doc__ or "",
        extra=PlanOption,
    )
    check_tracker(experiment.track)
    if started_as_several():
        raise UserError(
            "training runs in one process, but several were started; fill the table with "
            "python -m jroute.outcomes in several, then train in one process"
        )
    if not options.plan:
        output_folder(experiment.run, "run")
    from jroute.experiment.run import Run

    run = Run.start(experiment, keep=False)
    if options.plan:
        from jroute.experiment.plan import plan_training

        print(plan_training(run))
        return
    from jroute.experiment.pipeline import train
    from jroute.report.text import print_results

    results = train(run)
    print_results(results)
    if unavailable := results.get("not_available"):
        print("not available without a table:")
        print("\n".join(f"  {arm}: needs {what}" for arm, what in unavailable.items()) + "\n")
    print("\n".join(run.folder.describe()))


if __name__ == "__main__":
    run_command(main, "give the same command again to continue from here")
