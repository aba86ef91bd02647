"""Tasks of lm-evaluation-harness: its own with local data, those that ship here, a run's splits.

================================  ==============================================================
``lookup``, ``local_data``        tasks by name; local data in place of the hub
``shipped/``, ``shipped_tasks``   tasks; ``lm-eval run --include_path`` takes the folder as well
``filters``, ``splits``           how answers are read; a run's own splits as tasks
``prompting``                     a task's own prompt as the prompt of an experiment
================================  ==============================================================
"""

from jroute.tasks.benchmarks import filters as filters  # registers them
from jroute.tasks.benchmarks.local_data import LOCAL_DATA, data_folder, local_data
from jroute.tasks.benchmarks.lookup import OFFICIAL, SHIPPED, find_tasks, load_tasks

__all__ = [
    "LOCAL_DATA",
    "OFFICIAL",
    "SHIPPED",
    "data_folder",
    "find_tasks",
    "load_tasks",
    "local_data",
]
