"""The parts that arms play in a comparison."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ArmRoles:
    """The parts that arms play in a comparison, by name; ``jroute.arms.registry`` has them.

    Attributes:
        declared: Arms that RL was declared to be compared with; Holm adjusts their p-values.
        rivals: Arms that choose by the prompt without RL, the weakest first.
        deterministic: Arms with one gate per problem and no seeds; each of the grid is another.
        same_seeds: Arms made of RL's own seeds, compared with RL seed by seed.
        subject: RL, with all its seeds.
        selected: The seed of RL that was best on validation.
        baseline: The plain model.
        best_fixed: The constant gate that was best on train.
        ceiling: The policy whose gain over the best fixed gate counts as a whole.
        bound: The oracle, compared last.
        grid_prefix: How the names of arms begin that give one gate of the grid to every problem.
    """

    declared: tuple[str, ...]
    rivals: tuple[str, ...]
    deterministic: tuple[str, ...]
    same_seeds: tuple[str, ...]
    subject: str
    selected: str
    baseline: str
    best_fixed: str
    ceiling: str
    bound: str
    grid_prefix: str
