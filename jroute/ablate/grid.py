"""What the parts of a routing are worth: preset x streams x sites x guards x gate on one split.

Every cell is a small file that is written once it is whole, named by everything that decides it; so
a killed run goes on, a cell that two settings share is made once, and a cell at gate 0, where the
routing does not matter, is made once for all.
"""

import dataclasses
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import jax
import numpy as np

from jroute.distributed.mesh import MeshConfig
from jroute.experiment.config import Experiment
from jroute.experiment.run import Run
from jroute.generate.config import EngineConfig
from jroute.generate.decoding import Decoding
from jroute.lm import resolve_routing
from jroute.outcomes.outcome import judge
from jroute.probe import effects
from jroute.routing.config import RoutingConfig
from jroute.statistics.intervals import accuracy
from jroute.tasks import Split, TaskConfig
from jroute.tasks.prompts import PromptConfig
from jroute.utils.errors import UserError
from jroute.utils.files import write_text
from jroute.utils.fingerprint import semantic_fingerprint
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
        streams: Numbers of streams, the trunk included: a preset's side streams are cut, or, if
            they are all of one kind and worth the same, repeated; 0 takes its own. Rows of
            ``fixed`` cannot be cut.
        sites: Blocks as in a routing, commas between them (``0-2,5`` or ``0.25-0.75``); ``all``;
            or ``own`` for the preset's.
        guards: ``own``, ``none``, or guards with ``+`` between them, which are then the only ones:
            ``norm_match``, ``exempt_first``, ``cap``.
        cap: What ``cap`` limits the relative change to.
        gates: Gates; 0 is the plain model.
        split: Split that is solved.
        problems: The first so many of it; 0 takes all.
        probed: Prompts on which the next-token KL is measured, the first so many.
        dtype: Arithmetic of the model; empty takes what is stored.
        seed: Of the sampling, if decoding samples.
        task: Where problems come from.
        prompt: How a question becomes a prompt.
        decoding: How completions are generated.
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
        """The experiment whose model, problems and prompts these are."""
        shared = {
            item.name: getattr(self, item.name)
            for item in dataclasses.fields(self)
            if item.name in ("run", "model", "dtype", "seed", "task", "prompt", "decoding")
            or item.name in ("engine", "mesh")
        }
        return Experiment(**shared)


def _guards(text: str) -> set[str] | None:
    """The guards that one entry names; ``None`` for a preset's own."""
    if text == OWN:
        return None
    named = set() if text == "none" else set(text.split("+"))
    if unknown := sorted(named - set(get_args(Guard))):
        raise UserError(
            f"guards: {unknown[0]!r} is none; give own, none, or some of "
            f"{', '.join(get_args(Guard))} with + between them"
        )
    return named


@dataclass(frozen=True)
class Variant:
    """One routing of the grid, and the words it is listed under.

    Attributes:
        preset: Name or path.
        streams: Number of streams, the trunk included.
        sites: As in the grid.
        guards: As in the grid.
        routing: What they amount to.
    """

    preset: str
    streams: int
    sites: str
    guards: str
    routing: RoutingConfig


def variants(grid: Ablation, layers: int) -> tuple[list[Variant], list[str]]:
    """All routings of a grid, and sentences on those there cannot be.

    Raises:
        UserError: No such preset; sites outside the model.
    """
    found: dict[tuple[Any, ...], Variant] = {}
    left_out = []
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
            left_out.append(f"{preset} with {size} streams: {error}")
            continue
        routing.site_indices(layers)
        key = (preset, size, sites, guards)  # a preset's own size may be named as well
        found[key] = Variant(*key, routing)
    return list(found.values()), list(dict.fromkeys(left_out))


def _resized(routing: RoutingConfig, size: int) -> dict[str, Any]:
    kinds, shares = routing.streams, routing.stationary
    if routing.rows and size != routing.size:
        raise UserError(f"the rows of this preset are for {routing.size} streams")
    if size == routing.size:
        return {}
    if size == 1:
        raise UserError("without side streams nothing is left of this preset to mix")
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


class Laboratory:
    """Makes the cells of a grid and keeps them in its folder.

    Attributes:
        grid: What is varied.
        variants: Its routings.
        left_out: Why some of them cannot be.
    """

    def __init__(self, grid: Ablation):
        self.grid = grid
        self.run = Run(Path(grid.run), grid.experiment())
        self.variants, self.left_out = variants(grid, self.run.base.config.num_hidden_layers)
        if not self.variants:
            raise UserError(f"the grid holds no routing: {self.left_out[0]}")
        self._problems = self.run.problems(grid.split)[: grid.problems or None]
        self._prompts = self.run.first_prompts(grid.split, len(self._problems))
        base = self.run.base
        self._shared = {
            "model": base.fingerprint,
            "dtype": str(jax.tree.leaves(base.params)[0].dtype),
            "prompts": self._prompts,
            "answers": [problem.answer for problem in self._problems],
            "probed": grid.probed,
            "decoding": grid.decoding,
            "seed": grid.seed,
        }

    def file(self, variant: Variant, gate: float) -> Path:
        """Where a cell lies."""
        what = {**self._shared, "gate": gate, "routing": variant.routing if gate else None}
        return self.run.directory / "cells" / f"{semantic_fingerprint(what)[:16]}.json"

    def fill(self, progress: Callable[[int, int], None]) -> int:
        """Make the cells that are missing; returns how many.

        Args:
            progress: Called with the number of cells that are there and of all of them.
        """
        wanted = {self.file(v, g): (v, g) for v in self.variants for g in self.grid.gates}
        missing = {file: cell for file, cell in wanted.items() if not file.is_file()}
        (self.run.directory / "cells").mkdir(parents=True, exist_ok=True)
        for done, (file, (variant, gate)) in enumerate(missing.items()):
            progress(len(wanted) - len(missing) + done, len(wanted))
            write_text(file, json.dumps(self._measure(variant, gate)) + "\n")
        progress(len(wanted), len(wanted))
        return len(missing)

    def _measure(self, variant: Variant, gate: float) -> dict[str, Any]:
        grid = self.grid
        lm = self.run.base.routed(variant.routing)
        completions = lm.generate(
            self._prompts,
            gate,
            decoding=grid.decoding,
            engine=grid.engine,
            seed=grid.seed,
        )
        limit = grid.decoding.max_new_tokens
        pairs = zip(self._problems, completions, strict=True)
        right = [judge(problem, gate, c, max_tokens=limit).correct for problem, c in pairs]
        with lm.devices():
            probed = self._prompts[: grid.probed]
            (moved,) = effects.divergence(lm.params, lm.config, lm.routing, probed, [gate])
        return {
            "gate": gate,
            "correct": [int(one) for one in right],
            "truncated": sum(c.stop_reason == "length" for c in completions),
            "kl": moved.kl,
            "kl_largest": moved.kl_largest,
            "agreement": moved.agreement,
        }

    def cells(self) -> list[dict[str, Any]]:
        """All cells, in the grid's order, as they stand in the table."""
        listed = []
        for variant, gate in itertools.product(self.variants, self.grid.gates):
            file = self.file(variant, gate)
            try:
                cell = json.loads(file.read_text())
                right = np.array(cell["correct"])
                found = accuracy(right)
                listed.append(
                    {
                        "preset": variant.preset,
                        "streams": variant.streams,
                        "sites": variant.sites,
                        "guards": variant.guards,
                        "gate": gate,
                        "n": found.n,
                        "accuracy": round(found.accuracy, 6),
                        "ci95": [round(end, 4) for end in found.ci95],
                        "truncated": round(cell["truncated"] / found.n, 6),
                        "kl": float(f"{cell['kl']:.4g}"),
                        "kl_largest": float(f"{cell['kl_largest']:.4g}"),
                        "agreement": round(cell["agreement"], 4),
                        "verdict": effects.verdict(cell["kl"]),
                    }
                )
            except (OSError, ValueError, KeyError) as error:
                raise UserError(
                    f"{file} is no whole cell ({error!r}); remove it, and only it is made anew"
                ) from error
        return listed


def table(cells: Sequence[dict[str, Any]]) -> str:
    """The cells as text: a line for every routing, accuracy and KL for every gate."""
    gates = list(dict.fromkeys(cell["gate"] for cell in cells))
    names = ("preset", "streams", "sites", "guards")
    rows: dict[tuple[Any, ...], dict[float, dict[str, Any]]] = {}
    for cell in cells:
        rows.setdefault(tuple(cell[name] for name in names), {})[cell["gate"]] = cell
    widths = [max(len(name), *(len(str(key[i])) for key in rows)) for i, name in enumerate(names)]
    titles = [f"{'gate ' + format(gate, 'g') + ': accuracy [95 %], KL':<40}" for gate in gates]

    def line(words: Sequence[Any], rest: Sequence[str]) -> str:
        start = "  ".join(f"{word!s:<{width}}" for word, width in zip(words, widths, strict=True))
        return f"{start}  {'  '.join(rest)}".rstrip()

    lines = [f"n = {cells[0]['n']} problems", line(names, titles)]
    for key, row in rows.items():
        texts = []
        for gate in gates:
            low, high = (100 * end for end in row[gate]["ci95"])
            text = f"{row[gate]['accuracy']:>6.1%} [{low:.1f}, {high:.1f}] {row[gate]['kl']:.2g}"
            texts.append(f"{text} {row[gate]['verdict']:<11}".ljust(40))
        lines.append(line(key, texts))
    return "\n".join(lines)
