"""Fill the outcome table of an experiment, or a part of it, and print its accuracy at every gate.

    python -m jroute.outcomes --config configs/qwen3_4b_gsm8k.yaml --split train,test
    python -m jroute.outcomes --config … --split test --gates 0 --problems 50
    python -m jroute.outcomes --config … --plan
    python -m jroute.outcomes --config … --share 0/4
    python -m jroute.outcomes --config … --split test --replicate 200

Cells that the table holds are not generated again: an interrupted command resumes where it stopped,
and training uses what was generated here. The second line is a sanity check of the
baseline; the third prints what the whole would take, and stops. The fourth fills a quarter of the
table: give the other shares to other machines, and collect the parts in one folder. The last
generates 200 cells again, in another order and batch width, and prints how many differ. Outcomes of
a routing that does nothing are a valid control: training refuses it, this command only warns. On a
mesh that needs several processes, start it with ``python -m jroute.launch`` or with ``srun``.
"""

import sys
from collections.abc import Sequence

from jroute.distributed.processes import is_first_process, join_processes
from jroute.experiment.config import Experiment
from jroute.outcomes.table_part import TablePart, list_arguments, summarise
from jroute.utils.cli import command, run_command
from jroute.utils.config import parse


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Parse, generate, print."""
    experiment, part = parse(
        Experiment,
        list_arguments(sys.argv[1:] if argv is None else argv),
        prog="python -m jroute.outcomes",
        description=__doc__ or "",
        extra=TablePart,
    )
    part.check(experiment.gates, experiment.splits, temperature=experiment.decoding.temperature)
    join_processes()
    from jroute.experiment.pipeline import inert_reason
    from jroute.experiment.plan import plan_outcomes
    from jroute.experiment.run import Run
    from jroute.outcomes.cells import missing_cells
    from jroute.outcomes.replicates import replicate

    run = Run.start(experiment, keep=not part.plan)
    cells = {
        split: part.cells(run.data.problems(split), experiment.gates)
        for split in part.split or experiment.splits
    }
    all_cells = [cell for split_cells in cells.values() for cell in split_cells]
    first = is_first_process()
    show = print if first else lambda *_, **__: None
    if part.plan:
        show(plan_outcomes(run, cells))
        return
    run.mixing.learn()
    table, generator = run.outcomes.table, run.generator
    mixes = any(cell.gate for cell in missing_cells(table, all_cells))
    checked = mixes and not experiment.allow_inert
    if checked and (reason := inert_reason(run.lm, run.data, run.grid)):
        show(f"warning: {reason}; all gates will have equal cells", file=sys.stderr)
    for split, split_cells in cells.items():
        count = generator.fill(table, split_cells, f"outcomes {split}")
        if first:  # only its table is sure to hold them all
            print(f"{summarise(table, split, split_cells)}\n{count} cells made now\n")
    if part.replicate:
        show(f"{replicate(generator, table, all_cells, part.replicate)}\n")
    show(f"{table.folder}: outcome table (Parquet)")


if __name__ == "__main__":
    run_command(main, "give the same command again to continue from here")
