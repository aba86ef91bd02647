"""Figures of what gates do. matplotlib is imported where it is used: doors start without it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jroute.evaluation.probing import DESTRUCTIVE_ABOVE, INERT_BELOW, STRONG_ABOVE, Probe, readers
from jroute.files import replacing
from jroute.model.composition import sources
from jroute.model.routing import Routing


@contextmanager
def _figure(file: Path, rows: int, columns: int, width: float, height: float) -> Iterator[Any]:
    """Axes ``[rows, columns]`` of a new figure, written when the block succeeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((width * columns, height * rows), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    yield figure.subplots(rows, columns, squeeze=False)
    with replacing(file) as partial:
        figure.savefig(partial, format=file.suffix.removeprefix("."))


def plot_probe(found: Probe, routing: Routing, folder: Path) -> list[Path]:
    """Draws a probe as ``gates.png``, ``blocks.png`` and ``composition.png``."""
    files = [folder / f"{name}.png" for name in ("gates", "blocks", "composition")]
    _gates(found, files[0])
    _blocks(found, routing, files[1])
    _composition(found, files[2])
    return files


def _gates(found: Probe, file: Path) -> None:
    """KL and agreement over gates, with the limits of the verdicts."""
    effects = sorted(found.effects, key=lambda effect: effect.gate)
    gates = [effect.gate for effect in effects]
    with _figure(file, 1, 2, 4.5, 3.5) as axes:
        left, right = axes[0]
        smallest = INERT_BELOW / 100
        for name, label in (("kl", "mean"), ("kl_largest", "largest")):
            values = [max(getattr(effect, name), smallest) for effect in effects]
            left.plot(gates, values, "o-", label=label)
        for limit, above in (
            (INERT_BELOW, "gentle"),
            (STRONG_ABOVE, "strong"),
            (DESTRUCTIVE_ABOVE, "destructive"),
        ):
            left.axhline(limit, color="grey", linewidth=0.8, linestyle=":")
            left.annotate(
                above, (0.01, limit), xycoords=("axes fraction", "data"), color="grey", va="bottom"
            )
        left.set(yscale="log", xlabel="gate", ylabel="next-token KL from gate 0 (nats)")
        left.legend()
        right.plot(gates, [effect.agreement for effect in effects], "o-")
        right.set(ylim=(0, 1.02), xlabel="gate", ylabel="top-1 agreement with gate 0")


def _blocks(found: Probe, routing: Routing, file: Path) -> None:
    """Everything that is measured block by block; hooks of a block lie side by side."""
    hooks, layers = len(routing.config.hooks), np.arange(len(routing.sites))
    places = (layers[:, None] + np.arange(hooks) / hooks).ravel()
    acted = np.repeat(np.asarray(routing.sites), hooks)
    with _figure(file, 2, 4, 3.6, 3) as axes:
        titles = {
            "change": "relative change",
            "angle": "angle (degrees)",
            "diversity": "diversity",
            "effective_streams": "effective streams",
            "first_attention": "attention to the first token",
        }
        for (name, title), panel in zip(titles.items(), axes.flat, strict=False):
            for effect in found.effects:
                values = getattr(effect, name)
                if name == "first_attention":
                    panel.plot(layers, values, ".-", label=f"{effect.gate:g}")
                else:
                    panel.plot(places[acted], values.ravel()[acted], ".-", label=f"{effect.gate:g}")
            panel.set(title=title, xlabel="block")
        axes[0, 0].legend(title="gate", fontsize="small")
        largest = max(found.effects, key=lambda effect: abs(effect.gate))
        kinds = ("trunk", *(routing.config.streams or ("update",)))
        for name, panel in zip(("rms", "dominance"), axes.flat[5:7], strict=True):
            for i, kind in enumerate(kinds):
                values = getattr(largest, name)[..., i].ravel()
                panel.plot(places[acted], values[acted], ".-", label=kind)
            panel.set(title=f"{name} at gate {largest.gate:g}", xlabel="block")
        axes[1, 1].legend(fontsize="small")
        axes[1, 3].axis("off")


def _composition(found: Probe, file: Path) -> None:
    """C(g) at every gate; white is 1, as in the plain model."""
    layers = len(found.effects[0].first_attention)
    names, rows = sources(layers), readers(layers)
    future = np.triu(np.ones((len(rows), len(names)), bool), 1)
    step = max(1, len(rows) // 16)
    with _figure(file, 1, len(found.effects), 4, 4) as axes:
        image = None
        for effect, panel in zip(found.effects, axes.flat, strict=True):
            shown = np.ma.masked_array(effect.composition, future)
            image = panel.imshow(shown, cmap="RdBu_r", vmin=0, vmax=2, interpolation="nearest")
            panel.set_facecolor("lightgrey")
            panel.set_xticks(range(0, len(names), step), names[::step], rotation=90)
            panel.set_yticks(range(0, len(rows), step), rows[::step])
            panel.set(title=f"C({effect.gate:g})", xlabel="source", ylabel="reader")
        axes[0, 0].figure.colorbar(image, ax=axes, shrink=0.8, extend="both")


def plot_ablation(cells: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Accuracy over gates, with 95 % intervals: a panel for every preset, a line per setting."""
    names = ("streams", "sites", "guards")
    lines: dict[str, dict[tuple[Any, ...], list[Mapping[str, Any]]]] = {}
    for cell in cells:
        of_preset = lines.setdefault(cell["preset"], {})
        of_preset.setdefault(tuple(cell[name] for name in names), []).append(cell)
    columns = min(len(lines), 4)
    with _figure(file, -(-len(lines) // columns), columns, 4.2, 3.4) as axes:
        for panel in axes.flat[len(lines) :]:
            panel.axis("off")
        for (preset, settings), panel in zip(lines.items(), axes.flat, strict=False):
            varied = [i for i in range(len(names)) if len({key[i] for key in settings}) > 1]
            for number, (key, line) in enumerate(settings.items()):
                line = sorted(line, key=lambda cell: cell["gate"])
                accuracy = np.array([cell["accuracy"] for cell in line])
                ends = np.array([cell["ci95"] for cell in line]).T
                panel.errorbar(
                    # Side by side, so that lines that agree are all seen.
                    [cell["gate"] + 0.012 * number for cell in line],
                    accuracy,
                    np.abs(ends - accuracy),
                    fmt="o-",
                    markersize=3,
                    linewidth=1,
                    elinewidth=0.5,
                    label=", ".join(f"{names[i]} {key[i]}" for i in varied) or "own",
                )
            panel.set(title=preset, xlabel="gate", ylabel="accuracy", ylim=(-0.02, 1.02))
            panel.legend(fontsize="x-small")
