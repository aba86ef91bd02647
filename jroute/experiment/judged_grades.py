"""Whether the results of a run rest on the grades that the cells of its table have now."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from jroute.experiment.config import Experiment
from jroute.experiment.run_folder import RunFolder
from jroute.outcomes.parts import parser_version
from jroute.outcomes.table import OutcomeTable
from jroute.tasks import gold_answers
from jroute.tasks.answers import ANSWER_PARSER_VERSION
from jroute.utils.errors import UserError


def find_table(folder: RunFolder, experiment: Experiment, fingerprint: str) -> Path:
    """Return the folder of the outcome table: in the run, or where several runs share tables.

    Raises:
        UserError: No table has this fingerprint.
    """
    candidates = [folder.outcomes, folder.memo]
    if experiment.outcomes:
        candidates.append(folder.locate(experiment.outcomes))
    for tables in candidates:
        if fingerprint and (tables / fingerprint).is_dir():
            return tables / fingerprint
    raise UserError(f"no outcome table {fingerprint[:16]} is in {candidates[0]}; train again")


def check_grades(folder: RunFolder, experiment: Experiment, outcomes: str) -> None:
    """Refuse results whose cells have other grades since the answer parser's rules have changed.

    Args:
        folder: The run folder.
        experiment: Its experiment.
        outcomes: Fingerprint of the table that its results come from; may be empty.

    Raises:
        UserError: They must be computed again.
    """
    try:
        version = parser_version(pq.read_schema(folder.items))
    except (pa.ArrowException, OSError, ValueError):  # missing or damaged: its reader says so
        version = 1
    if version == ANSWER_PARSER_VERSION:
        return
    try:
        place = find_table(folder, experiment, outcomes)
        table = OutcomeTable.open(place, lambda: gold_answers(experiment.task))
    except UserError:
        return  # nothing can be graded anew; who shows the cells says why they cannot be read
    if changed := table.changed_grades():
        raise UserError(
            f"{folder.results} was judged by version {version} of the answer parser, and by "
            f"version {ANSWER_PARSER_VERSION} {len(changed)} of the cells have another grade; run "
            f"python -m jroute.train --config {folder.config} again, no cell is generated again"
        )
