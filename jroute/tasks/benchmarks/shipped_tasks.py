"""Documents and classes that the YAML files in ``shipped/`` refer to.

With ``lm-eval run --include_path jroute/tasks/benchmarks/shipped`` the tasks work under every
backend of lm-eval, as long as this package is installed.
"""

from typing import Any

import datasets
from lm_eval.api.task import ConfigurableTask
from lm_eval.tasks._yaml_loader import load_yaml

from jroute.tasks import Problem, Split, svamp, synthetic
from jroute.tasks.benchmarks import filters as filters  # registers them
from jroute.tasks.benchmarks.lookup import OFFICIAL

SIZE = 1000
"""Problems of a synthetic split."""


def _documents(problems: list[Problem]) -> dict[str, datasets.Dataset]:
    rows = [{"id": p.id, "question": p.question, "answer": p.answer} for p in problems]
    return {"test": datasets.Dataset.from_list(rows)}


def _synthetic(split: Split) -> dict[str, datasets.Dataset]:
    return _documents(synthetic.problems(split, SIZE, 0))


def tiny_test(**_: Any) -> dict[str, datasets.Dataset]:
    """Return problems like those the tiny model was trained on."""
    return _synthetic("test")


def tiny_ood(**_: Any) -> dict[str, datasets.Dataset]:
    """Return harder problems than the tiny model was trained on."""
    return _synthetic("ood")


def svamp_documents(**_: Any) -> dict[str, datasets.Dataset]:
    """Return all problems of SVAMP, from ``$JROUTE_DATA`` or the hub."""
    return _documents(svamp.load(""))


class SvampCotLlama(ConfigurableTask):
    """SVAMP in the manner of ``gsm8k_cot_llama``, whose definition is read from lm-eval."""

    def __init__(self, config: dict[str, Any]):
        base = load_yaml(OFFICIAL / "gsm8k" / "gsm8k-cot-llama.yaml")
        for key in ("tag", "dataset_path", "dataset_name"):
            base.pop(key, None)
        own = {key: value for key, value in config.items() if key != "class"}
        super().__init__(config={**base, "custom_dataset": svamp_documents, **own})
