"""Figures of a probe. matplotlib is imported where it is used, so that commands start fast."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jroute.probe.effects import DESTRUCTIVE_ABOVE, INERT_BELOW, STRONG_ABOVE, Probe
from jroute.probe.text import readers
from jroute.routing.composition import source_names
from jroute.routing.mixing import Routing
from jroute.utils.files import write_bytes

STYLE = {
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": "medium",
    "axes.titlelocation": "left",
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "lines.markersize": 4,
}


@contextmanager
def open_figure(
    file: Path, rows: int, columns: int, width: float, height: float, **options: Any
) -> Iterator[Any]:
    """Give the axes ``[rows, columns]`` of a figure that is written when the block succeeds.

    Args:
        file: File of the figure; its ending names the format.
        rows: Rows of axes.
        columns: Columns of axes.
        width: Width in inches.
        height: Height in inches.
        **options: Further options of ``matplotlib.figure.Figure.subplots``.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure((width, height), layout="constrained", dpi=140)
        FigureCanvasAgg(figure)
        yield figure.subplots(rows, columns, squeeze=False, **options)
        image = io.BytesIO()
        figure.savefig(image, format=file.suffix.removeprefix("."))
        write_bytes(file, image.getvalue())


def shades(count: int) -> list[Any]:
    """Return colours of values in order, light to dark."""
    from matplotlib import colormaps

    return [colormaps["viridis_r"](x) for x in np.linspace(0.15, 1, count)]


def plot_probe(probe: Probe, routing: Routing, folder: Path) -> list[Path]:
    """Draw a probe as ``gates.png``, ``blocks.png`` and ``composition.png``."""
    files = [folder / f"{name}.png" for name in ("gates", "blocks", "composition")]
    _gates(probe, files[0])
    _blocks(probe, routing, files[1])
    _composition(probe, files[2])
    return files


def _gates(probe: Probe, file: Path) -> None:
    """Draw KL and agreement over gates, on a background of the verdicts."""
    effects = sorted(probe.effects, key=lambda effect: effect.gate)
    gates = [effect.gate for effect in effects]
    lowest, highest = INERT_BELOW / 100, 3 * DESTRUCTIVE_ABOVE
    with open_figure(file, 1, 2, 8.4, 3.4) as axes:
        left, right = axes[0]
        limits = (lowest, INERT_BELOW, STRONG_ABOVE, DESTRUCTIVE_ABOVE)
        verdicts = ("inert", "gentle", "strong", "destructive")
        colours = ("grey", "green", "orange", "red")
        finite = [e.kl_largest for e in effects if np.isfinite(e.kl_largest)]
        highest = max(highest, *(2 * kl for kl in finite))
        for low, high, name, colour in zip(
            limits, (*limits[1:], highest), verdicts, colours, strict=True
        ):
            left.axhspan(low, high, color=colour, alpha=0.08, linewidth=0)
            left.annotate(
                f" {name}", (1, low), xycoords=("axes fraction", "data"), color=colour, va="bottom"
            )
        for name, label, line in (("kl", "mean", "o-"), ("kl_largest", "largest", "o:")):
            values = np.array([getattr(effect, name) for effect in effects])
            values = np.where(np.isfinite(values), np.maximum(values, lowest), highest)
            left.plot(gates, values, line, color="black", label=f"{label} over tokens")
        left.set(
            yscale="log",
            ylim=(lowest, highest),
            xlabel="gate",
            ylabel="KL (nats)",
            title="next-token KL from the plain model",
        )
        left.legend(loc="lower right")
        shares = [100 * effect.agreement for effect in effects]
        right.plot(gates, shares, "o-", color="black")
        right.set(
            ylim=(0, 103), xlabel="gate", ylabel="tokens (%)", title="most likely token unchanged"
        )


def _blocks(probe: Probe, routing: Routing, file: Path) -> None:
    """Draw what is measured block by block; hooks of a block lie side by side."""
    hooks, layers = routing.config.hooks, np.arange(len(routing.sites))
    kinds = ("trunk", *(routing.config.streams or ("update",)))
    size = len(kinds)
    places = (layers[:, None] + np.arange(len(hooks)) / len(hooks)).ravel()
    acted = np.repeat(np.asarray(routing.sites), len(hooks))
    panels = {
        "change": ("change of the trunk by mixing", "of its norm (%)", 100, 0, None),
        "angle": ("angle by which it turns", "degrees", 1, 0, None),
        "diversity": ("diversity of streams", "1 - mean cosine", 1, 0, None),
        "effective_streams": (
            "effective streams, gate 1",
            "exp(entropy of shares)",
            1,
            0.9,
            size + 0.1,
        ),
        "first_attention": ("attention to the first token", "share (%)", 100, 0, None),
    }
    effects = sorted(probe.effects, key=lambda effect: effect.gate)
    largest = max(effects, key=lambda effect: abs(effect.gate))
    with open_figure(file, 2, 4, 14, 5.6) as axes:
        for panel, (name, (title, unit, scale, low, high)) in zip(
            axes.flat, panels.items(), strict=False
        ):
            for effect, colour in zip(effects, shades(len(effects)), strict=True):
                if name == "effective_streams" and effect is not largest:
                    continue  # it is M's at gate 1, whatever the gate
                values, style = scale * getattr(effect, name), {"color": colour}
                style["label"] = f"{effect.gate:g}"
                if name == "first_attention":
                    panel.plot(layers, values, "o-", **style)
                else:
                    panel.plot(places[acted], values.ravel()[acted], "o-", **style)
            panel.set(title=title, ylabel=unit, ylim=(low, high or _above(panel)))
        for name, title, unit, scale, panel in (
            ("rms", "size of streams as mixed", "root mean square", 1, axes[1, 1]),
            ("dominance", "shares in the mixed trunk", "share (%)", 100, axes[1, 2]),
        ):
            for i, kind in enumerate(kinds):
                values = scale * getattr(largest, name)[..., i].ravel()
                line = "o" + ("-", "--", "-.", ":")[i % 4]  # lines that agree are all seen
                panel.plot(places[acted], values[acted], line, label=f"{i} {kind}")
            gate = "1" if name == "dominance" else f"{largest.gate:g}"
            panel.set(title=f"{title}, gate {gate}", ylabel=unit)
            panel.set_ylim(0, 102 if name == "dominance" else _above(panel))
        for panel in axes.flat[:7]:
            panel.set(xlabel="block" if len(hooks) == 1 else f"block ({', '.join(hooks)})")
            panel.xaxis.get_major_locator().set_params(integer=True)
        axes[1, 0].set(xlabel="block")
        legends = axes[1, 3]
        legends.axis("off")
        first = legends.legend(
            *axes[0, 0].get_legend_handles_labels(), title="gate", loc="upper left"
        )
        legends.add_artist(first)
        legends.legend(*axes[1, 1].get_legend_handles_labels(), title="stream", loc="upper right")


def _above(panel: Any) -> float:
    """Return an upper limit that leaves room for markers where the lower one is 0."""
    return 1.06 * panel.get_ylim()[1]


def _composition(probe: Probe, file: Path) -> None:
    """Draw C(g) at every gate; white is 1, as in the plain model."""
    effects = sorted(probe.effects, key=lambda effect: effect.gate)
    layers = len(effects[0].first_attention)
    names, rows = source_names(layers), readers(layers)
    future = np.triu(np.ones((len(rows), len(names)), bool), 1)
    step = max(1, len(rows) // 14)
    away = np.abs(np.stack([effect.composition for effect in effects])[:, ~future] - 1)
    reach = np.clip(away.max(initial=0.25, where=np.isfinite(away)), 0.25, 1.0)
    columns = min(len(effects), 3)
    height = -(-len(effects) // columns)
    with open_figure(file, height, columns, 0.8 + 3.4 * columns, 3.5 * height) as axes:
        image = None
        for panel in axes.flat:
            panel.set_axis_off()
        for effect, panel in zip(effects, axes.flat, strict=False):
            beyond = 2 * reach  # huge weights would overflow on their way to a colour
            shown = np.clip(effect.composition, 1 - beyond, 1 + beyond)
            shown = np.ma.masked_array(shown, future)
            image = panel.imshow(
                shown, cmap="RdBu_r", vmin=1 - reach, vmax=1 + reach, interpolation="nearest"
            )
            panel.set_axis_on()
            panel.set_facecolor("0.85")  # what is yet to come
            panel.grid(visible=False)
            panel.set_xticks(range(0, len(names), step), names[::step], rotation=90)
            panel.set_yticks(range(0, len(rows), step), rows[::step])
            panel.tick_params(labelsize="small")
            panel.set(title=f"C(g) at gate {effect.gate:g}", xlabel="update of", ylabel="read by")
        bar = axes[0, 0].figure.colorbar(image, ax=axes, shrink=0.7, aspect=30, extend="both")
        bar.set_label("weight (1 in the plain model)")
