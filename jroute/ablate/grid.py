"""The grid of an ablation: preset x streams x sites x guards x gate, read from YAML."""

import dataclasses
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from jroute.distributed.mesh import MeshConfig
from jroute.experiment.config import Experiment
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.lm import resolve_routing
from jroute.routing.config import RoutingConfig
from jroute.tasks import Split, TaskConfig
from jroute.tasks.prompts import PromptConfig
from jroute.utils.errors import UserError
from jroute.utils.keys import Keys, keys

Guard = Literal["norm_match", "exempt_first", "cap"]
OWN = "own"


@dataclass(frozen=True)
class Ablation:
    """A grid of routings and gates, read from YAML.

    Attributes:
        run: Folder for cells, table and plot.
        model: Model directory that ``python -m jroute.convert`` wrote.
        presets: Preset names or YAML paths.
        streams: Numbers of streams, the trunk included; 0 keeps the preset's own. Side streams are
            cut, or repeated if they are all of one kind and weight. ``fixed`` rows cannot be cut.
        sites: Blocks as in a routing, separated by commas (``0-2,5`` or ``0.25-0.75``); ``all``; or
            ``own`` for the preset's.
        guards: ``own``, ``none``, or the only guards to use, joined by ``+``: ``norm_match``,
            ``exempt_first``, ``cap``.
        cap: Limit of the relative change, for the guard ``cap``.
        gates: Gates; 0 is the plain model.
        split: Split to solve.
        problems: Only the first ``problems`` of it; 0 takes all.
        probed: Prompts on which the next-token KL is measured.
        dtype: Arithmetic of the model; empty takes what is stored.
        seed: Sampling seed, if decoding samples.
        task: Source of the problems.
        prompt: Template of the prompts.
        decoding: Decoding of the completions.
        engine: Execution shape of generation.
        mesh: Devices that the model runs on.
    """

    stored_keys: ClassVar[Keys] = keys(
        "run",
        "model",
        "presets",
        "streams",
        "sites",
        "guards",
        "cap",
        "gates",
        "split",
        "problems",
        "probed",
        "dtype",
        "seed",
        "task",
        "prompt",
        "decoding",
        "engine",
        "mesh",
    )

    run: str
    model: str
    presets: tuple[str, ...]
    streams: tuple[int, ...] = (0,)
    sites: tuple[str, ...] = (OWN,)
    guards: tuple[str, ...] = (OWN,)
    cap: float = 0.1
    gates: tuple[float, ...] = (0.0, 0.5, 1.0)
    split: Split = "test"
    problems: int = 100
    probed: int = 8
    dtype: Literal["", "float32", "bfloat16"] = ""
    seed: int = 0
    task: TaskConfig = field(default_factory=TaskConfig)
    prompt: PromptConfig = field(default_factory=PromptConfig)
    decoding: Decoding = field(default_factory=Decoding)
    engine: EngineConfig = field(default_factory=EngineConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)

    def __post_init__(self) -> None:
        for name in ("presets", "streams", "sites", "guards", "gates"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise UserError(f"{name} must hold at least one value, and none twice")
        for guards in self.guards:
            _guards(guards)
        if self.problems < 0 or self.probed < 1 or self.cap <= 0 or min(self.streams) < 0:
            raise UserError(
                "problems and streams must not be negative, probed starts at 1, cap is above 0"
            )

    def experiment(self) -> Experiment:
        """Return the experiment that provides model, problems and prompts."""
        shared = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name in ("run", "model", "dtype", "seed", "task", "prompt", "decoding")
            or item.name in ("engine", "mesh")
        }
        return Experiment(**shared)


def _guards(text: str) -> set[str] | None:
    """Return the guards that one entry names; ``None`` for a preset's own."""
    if text == OWN:
        return None
    named = set() if text == "none" else set(text.split("+"))
    if unknown := sorted(named - set(get_args(Guard))):
        raise UserError(
            f"guards: {unknown[0]!r} is not a guard; give own, none, or some of "
            f"{', '.join(get_args(Guard))} joined by +"
        )
    return named


@dataclass(frozen=True)
class Variant:
    """One routing of the grid, and the entries that it is made of.

    Attributes:
        preset: Name or path.
        streams: Number of streams, the trunk included.
        sites: Entry of the grid.
        guards: Entry of the grid.
        routing: The resulting configuration.
    """

    preset: str
    streams: int
    sites: str
    guards: str
    routing: RoutingConfig


def variants(grid: Ablation, layers: int) -> tuple[list[Variant], list[str]]:
    """Return all routings of a grid, and a sentence on each that is impossible.

    Raises:
        UserError: No such preset; sites outside the model.
    """
    possible: dict[tuple[Any, ...], Variant] = {}
    impossible = []
    for preset, size, sites, guards in itertools.product(
        grid.presets, grid.streams, grid.sites, grid.guards
    ):
        routing = resolve_routing(Path(grid.model), preset)
        size = size or routing.size
        try:
            routing = dataclasses.replace(
                routing,
                **_resized(routing, size),
                **({} if sites == OWN else {"sites": _sites(sites)}),
                **_guard_fields(_guards(guards), grid.cap),
            )
        except UserError as error:
            impossible.append(f"{preset} with {size} streams: {error}")
            continue
        routing.site_indices(layers)
        key = (preset, size, sites, guards)  # a preset's own size may be named as well
        possible[key] = Variant(*key, routing)
    return list(possible.values()), list(dict.fromkeys(impossible))


def _resized(routing: RoutingConfig, size: int) -> dict[str, Any]:
    kinds, shares = routing.streams, routing.stationary
    if routing.rows and size != routing.size:
        raise UserError(f"the rows of this preset are for {routing.size} streams")
    if size == routing.size:
        return {}
    if size == 1:
        raise UserError("a preset without side streams has nothing to mix")
    if size < routing.size:
        total = sum(shares[:size])
        return {
            "streams": kinds[: size - 1],
            "stationary": tuple(share / total for share in shares[:size]),
        }
    if len(set(kinds)) != 1:
        raise UserError("side streams of several kinds cannot be repeated")
    if shares:
        raise UserError("unequal shares of streams (stationary) cannot be repeated")
    return {"streams": (kinds * size)[: size - 1]}


def _sites(text: str) -> tuple[str, ...]:
    return () if text == "all" else tuple(part.strip() for part in text.split(","))


def _guard_fields(guards: set[str] | None, cap: float) -> dict[str, Any]:
    if guards is None:
        return {}
    return {
        "norm_match": "norm_match" in guards,
        "exempt_first": "exempt_first" in guards,
        "cap": cap if "cap" in guards else 0.0,
        "sink_norms": (),
    }
