"""The configuration of an experiment, as one tree of frozen dataclasses.

Each section is defined beside the code that reads it; this module only combines them.
"""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jroute.arms.supervised import SupervisedConfig
from jroute.controller.features import FeatureConfig
from jroute.distributed.mesh import MeshConfig
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.observe.scalars import Track
from jroute.ppo.config import PPOConfig
from jroute.probe.mixing import MixingConfig
from jroute.routing.gate import check_gates
from jroute.statistics.config import JudgeConfig
from jroute.tasks import Split, TaskConfig
from jroute.tasks.prompts import PromptConfig
from jroute.tasks.rewards import RewardConfig
from jroute.utils.errors import UserError
from jroute.utils.keys import Keys, keys


@dataclass(frozen=True)
class Experiment:
    """One experiment, read from YAML.

    Attributes:
        run: Run folder, which holds everything that the experiment writes.
        model: Model directory that ``python -m jroute.convert`` wrote.
        routing: Preset name or YAML path; empty takes what is stored with the model, or else
            ``histories``.
        dtype: Arithmetic of the model; empty takes what is stored.
        seed: Seed of the controllers and of the random arm.
        gates: The grid of gates a controller chooses from.
        gate_per: Whether a decision is one gate for the ``prompt``, one for each ``band`` of depth
            that the routing has, or one for each ``layer`` that is a mixing site.
        rollouts: Whether PPO learns from the outcome ``table`` or from completions generated
            ``live``; gates per band or layer have no table.
        outcomes: Folder of outcome tables, which several runs may share; empty is inside the run
            folder.
        allow_inert: Train even where no gate of the grid changes what the model predicts.
        judged: Splits that all arms are judged on; the first is the primary one.
        mixing: Learning of the routing's weights before anything else, the base frozen.
        task: Source of the problems.
        prompt: Template of the prompts.
        decoding: Decoding of the completions, the same for all arms.
        engine: Execution shape of generation.
        mesh: Devices that the model runs on; not stored in the run folder.
        track: Service that training curves also go to: ``wandb``; not stored in the run folder.
        reward: Reward of PPO; the claim uses exact match alone.
        features: Features that a controller sees.
        ppo: The learner.
        supervised: The supervised arm.
        judge: Intervals and contrasts.
    """

    stored_keys: ClassVar[Keys] = keys(
        "run",
        "model",
        "routing",
        "dtype",
        "seed",
        "gates",
        "gate_per",
        "rollouts",
        "outcomes",
        "allow_inert",
        "judged",
        "mixing",
        "task",
        "prompt",
        "decoding",
        "engine",
        "mesh",
        "track",
        "reward",
        "features",
        "ppo",
        "supervised",
        "judge",
    )

    run: str
    model: str
    routing: str = ""
    dtype: Literal["", "float32", "bfloat16"] = ""
    seed: int = 0
    gates: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    gate_per: Literal["prompt", "band", "layer"] = "prompt"
    rollouts: Literal["table", "live"] = "table"
    outcomes: str = ""
    allow_inert: bool = False
    judged: tuple[Split, ...] = ("test",)
    mixing: MixingConfig = field(default_factory=MixingConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    decoding: Decoding = field(default_factory=Decoding)
    engine: EngineConfig = field(default_factory=EngineConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    track: Track = ""
    reward: RewardConfig = field(default_factory=RewardConfig)
    features: FeatureConfig = field(default_factory=FeatureConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    supervised: SupervisedConfig = field(default_factory=SupervisedConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)

    def __post_init__(self) -> None:
        if len(self.gates) < 2 or len(set(self.gates)) != len(self.gates):
            raise UserError(f"gates must be at least two different numbers, got {self.gates}")
        check_gates(self.gates, "gates")
        if 0.0 not in self.gates or 0.5 not in self.gates:
            raise UserError("gates must hold 0 (the baseline) and 0.5 (a control arm)")
        if self.gate_per != "prompt" and self.rollouts == "table":
            raise UserError(
                f"a gate per {self.gate_per} has too many values for a table; give rollouts: live"
            )
        if not self.judged or not {"train", "validation"}.isdisjoint(self.judged):
            raise UserError(
                f"judged is {list(self.judged)}; name at least one split, and none that is learned "
                "from or chosen on, e.g. [test]"
            )
        if len(set(self.judged)) < len(self.judged):
            raise UserError(f"judged is {list(self.judged)}; name each split once")

    @property
    def splits(self) -> tuple[Split, ...]:
        """Every split the experiment uses, in order."""
        return ("train", "validation", *self.judged)
