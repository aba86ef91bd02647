"""The files of a probe: its numbers as JSON, and its figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import model_validator

from jroute.lm import LanguageModel
from jroute.probe.effects import Probe
from jroute.probe.plots import plot_probe
from jroute.probe.text import probe_numbers
from jroute.tasks import Split
from jroute.utils.digested import read_digested, write_digested
from jroute.utils.json_files import Number, OpenRecord
from jroute.utils.keys import stored
from jroute.utils.together import written_together


def write_probe(
    folder: Path, probe: Probe, lm: LanguageModel, split: Split, prompts: Sequence[Sequence[int]]
) -> list[Path]:
    """Write ``probe.json`` and the figures, and return their paths.

    Args:
        folder: Where to write; made if missing.
        probe: What was measured.
        lm: The model it was measured on.
        split: The split of the prompts.
        prompts: Their tokens.
    """
    content = {
        "model": lm.fingerprint,
        "routing": stored(lm.routing.config),
        "split": split,
        "prompts": len(prompts),
        "tokens": sum(map(len, prompts)),
        **probe_numbers(probe, lm.routing),
    }
    with written_together(folder, "probe") as partial:
        write_digested(partial / "probe.json", content, indent=None)
        plots = plot_probe(probe, lm.routing, partial)
    return [folder / "probe.json", *(folder / plot.name for plot in plots)]


class StreamEffect(OpenRecord):
    """What is read of the effect of a gate."""

    gate: Number
    dominance: list[list[list[Number | None]]]  # [blocks, hooks, streams]
    diversity: list[list[Number | None]]  # [blocks, hooks]

    @model_validator(mode="after")
    def _rectangular(self) -> "StreamEffect":
        blocks = [(len(hooks), *{len(streams) for streams in hooks}) for hooks in self.dominance]
        if len(set(blocks)) != 1 or len(blocks[0]) != 2 or 0 in blocks[0]:
            raise ValueError("has a dominance that is not a number for each block, hook and stream")
        if [len(hooks) for hooks in self.diversity] != [blocks[0][0]] * len(blocks):
            raise ValueError("has a diversity that is not a number for each block and hook")
        return self


class StoredProbe(OpenRecord):
    """``probe.json``, as far as it is read."""

    effects: list[StreamEffect]
    sites: list[int]
    streams: list[str]
    prompts: int
    split: str
    verdict: str

    @model_validator(mode="after")
    def _of_one_model(self) -> "StoredProbe":
        shapes = {(len(e.dominance), len(e.dominance[0][0])) for e in self.effects}
        if len(shapes) > 1:
            raise ValueError("has effects of different models")
        for blocks, _ in shapes:
            if not all(0 <= site < blocks for site in self.sites):
                raise ValueError(f"has a site that is not one of {blocks} blocks")
        return self


def read_probe(file: Path) -> Mapping[str, Any]:
    """Return what is stored in ``probe.json``.

    Raises:
        UserError: It is missing or damaged.
    """
    remedy = "remove it, or run python -m jroute.probe again"
    return read_digested(file, StoredProbe, remedy).model_dump(exclude_unset=True)
