"""What is evaluated: a run with its arms, or a model without a run."""

from dataclasses import dataclass
from pathlib import Path

from jroute.distributed.mesh import MeshConfig
from jroute.experiment.run import Run, load_run
from jroute.harness import policy
from jroute.harness.options import RESULTS_OF_MODELS, EvaluationOptions
from jroute.harness.policy import ArmPolicy
from jroute.lm import LanguageModel, load


@dataclass(frozen=True)
class Subject:
    """A run, or a model without one.

    Attributes:
        folder: Folder of the run or the model.
        lm: The model.
        run: The run, if there is one.
    """

    folder: Path
    lm: LanguageModel
    run: Run | None

    @property
    def results(self) -> Path:
        """The folder of its results, if none is named."""
        if self.run is not None:
            return self.folder / "lm_eval"
        name = f"{self.folder.resolve().name}-{self.lm.fingerprint[:8]}"
        return RESULTS_OF_MODELS / name

    def policies(self, arms: list[str]) -> dict[str, ArmPolicy]:
        """Return the policies of arms, by name.

        Args:
            arms: Names; ``["all"]`` stands for every arm that the subject has.

        Raises:
            UserError: The subject lacks one of the arms.
        """
        run = self.run
        if arms == ["all"]:
            arms = policy.available_arms(run) if run else policy.model_arms()
        return {
            arm: policy.run_policy(run, arm) if run else policy.model_policy(arm) for arm in arms
        }


def open_subject(options: EvaluationOptions) -> Subject:
    """Open the run or the model that the command line names.

    Raises:
        UserError: There is no such run or model.
    """
    mesh = MeshConfig.parse(options.mesh)
    if options.run is not None:
        run = load_run(options.run, mesh=mesh)
        return Subject(run.directory, run.lm, run)
    assert options.model_dir is not None
    lm = load(options.model_dir, options.routing, dtype=options.dtype, mesh=mesh)
    return Subject(options.model_dir, lm, None)
