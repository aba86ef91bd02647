"""The figures of a report, drawn once each: inline in the page, and as files of their own.

A figure names its colours (``ink``, ``accent``, ``gate3``); a look says what they are. In the page
they are CSS variables, so one drawing is right in light and dark.

matplotlib is imported where it is used: doors start without it.
"""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from jroute.evaluation.html import shares
from jroute.evaluation.html.material import Gate, Judged, Material
from jroute.evaluation.html.rows import Interval, arms, contrasts, headroom
from jroute.files import replacing
from jroute.observe.scalars import GATE_SHARE

INK = ("ink", "muted", "faint", "accent", "paper")
LIGHT = dict(zip(INK, ("#1b1f24", "#5b636d", "#dfe3e8", "#3350c4", "#ffffff"), strict=True))
DARK = dict(zip(INK, ("#e8eaed", "#9aa3ad", "#343a42", "#93a7ff", "#14171a"), strict=True))

_RAMP = {  # from no mixing, a grey, over a teal that grows away from the page's ground
    "light": ("#c3c8ce", "#a9d8d0", "#2f9488", "#0b4741"),
    "dark": ("#565d66", "#1f5f59", "#3fae9f", "#bdeee5"),
}

WIDTH = 340
"""Points of a small figure, which are pixels in the page: the width of a phone."""

_STYLE = {
    "font.size": 11,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.linewidth": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "xtick.major.width": 0.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "jroute",
    "path.simplify": True,
}


@dataclass(frozen=True)
class Look:
    """Colours of a drawing, by name."""

    colours: dict[str, str]

    def __getattr__(self, name: str) -> str:
        try:
            return self.colours[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: Of its files, and of its place in the page.
        title: What it shows, in a few words.
        said: What it shows to somebody who cannot see it.
        draw: Draws it on axes.
        height: In points.
        width: In points.
    """

    name: str
    title: str
    said: str
    draw: Callable[[Any, Look], None]
    height: int = 220
    width: int = WIDTH


def gate_ramp(count: int, mode: str) -> list[str]:
    """Colours of the gates of a grid, from the smallest on; ``mode`` is ``light`` or ``dark``."""
    first, *rest = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in _RAMP[mode])
    places = np.linspace(0, len(rest) - 1, max(count - 1, 1))
    grown = np.stack([np.interp(places, range(len(rest)), [c[i] for c in rest]) for i in range(3)])
    return ["#" + "".join(f"{round(v):02x}" for v in c) for c in (first, *grown.T)][:count]


def look(count: int, mode: str = "light") -> Look:
    """Plain colours."""
    ramp = {f"gate{i}": colour for i, colour in enumerate(gate_ramp(count, mode))}
    return Look({**(LIGHT if mode == "light" else DARK), **ramp})


def _placeholders(count: int) -> dict[str, str]:
    """Colours that stand for the names until a drawing is in the page."""
    names = [*INK, *(f"gate{i}" for i in range(count))]
    return {name: f"#fe{i:02x}dc" for i, name in enumerate(names)}


def inline(figure: Figure, gates: int) -> str:
    """A figure as an ``<svg>`` whose colours are the page's CSS variables."""
    from html import escape

    named = _placeholders(gates)
    drawn = io.StringIO()
    with _drawing(figure, Look(named)) as canvas:
        canvas.savefig(drawn, format="svg", transparent=True, metadata={"Date": None})
    text = drawn.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*font-family: [^;\"]*;?", "", text)
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--sans)", text)
    # Names must be the page's own: several figures stand in it.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{figure.name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{figure.name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{figure.name}-\1"', text)
    for name, colour in named.items():
        text = text.replace(colour, f"var(--{name})")
    head = text[: text.index(">") + 1]
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    said = escape(figure.said, quote=True)
    opened = (
        f'<svg {box[0]} width="{figure.width}" role="img" aria-label="{said}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    )
    return opened + text[len(head) :]


def save(figure: Figure, gates: int, folder: Path) -> list[Path]:
    """A figure as PNG and SVG files."""
    files = [folder / f"{figure.name}.{kind}" for kind in ("png", "svg")]
    with _drawing(figure, look(gates), titled=True) as canvas:
        for file in files:
            kind = file.suffix.removeprefix(".")
            with replacing(file) as partial:
                canvas.savefig(
                    partial, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else {}
                )
    return files


@contextmanager
def _drawing(figure: Figure, colours: Look, *, titled: bool = False) -> Iterator[Any]:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    ink = {f"{what}.color": colours.ink for what in ("text",)}
    ink |= {f"{axis}tick.color": colours.faint for axis in "xy"}
    ink |= {f"{axis}tick.labelcolor": colours.muted for axis in "xy"}
    ink |= {"axes.edgecolor": colours.faint, "axes.labelcolor": colours.muted}
    ink |= {"axes.facecolor": "none", "figure.facecolor": colours.paper}
    with matplotlib.rc_context({**_STYLE, **ink}):
        canvas = Canvas((figure.width / 72, figure.height / 72), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.subplots()
        figure.draw(axes, colours)
        if titled:
            axes.set_title(figure.title, loc="left", fontsize=12, fontweight="bold")
        yield canvas


def figures(material: Material) -> list[Figure]:
    """Every figure that the material has the data for."""
    found: list[Figure] = []
    for judged in material.splits:
        found += _of_results(judged, material.results)
    if material.curves:
        found += _of_training(material)
    if material.splits and material.splits[0].rows:
        found += _of_difficulty(material.splits[0])
    if material.probe is not None:
        found += _of_streams(material.probe)
    return found


def grid(material: Material) -> list[Gate]:
    """Gates in order of their colours: all that were chosen or tried, the smallest first."""
    listed = {(float(gate),) for gate in material.results.get("gates", ())}
    chosen = {
        (float(part),) for judged in material.splits for part in np.unique(judged.gates).tolist()
    }
    return sorted(listed | chosen)


def _of_results(judged: Judged, results: Any) -> list[Figure]:
    drawn = []
    for name, title, rows, unit in (
        ("arms", "Accuracy of every arm, %", arms(judged.results), ""),
        ("contrasts", "RL minus other arms, points", contrasts(judged.results), "+"),
        ("headroom", "Gain over the best fixed gate, points", headroom(judged.results), "+"),
    ):
        if rows:
            said = "; ".join(row.said for row in rows)
            drawn.append(
                Figure(
                    f"{name}-{judged.name}",
                    f"{title} ({judged.name}, n = {judged.results['n']:,})",
                    said,
                    lambda axes, c, rows=rows, unit=unit: _intervals(axes, c, rows, unit),
                    60 + 22 * len(rows),
                    520,
                )
            )
    return drawn


def _intervals(axes: Any, c: Look, rows: Sequence[Interval], unit: str) -> None:
    """Dots with whiskers, a row each, and the number at the right."""
    for i, row in enumerate(rows):
        colour = c.accent if row.bold else c.ink
        if row.ci95 is not None:
            axes.plot(row.ci95, [i, i], color=colour, linewidth=1.6, solid_capstyle="round")
        axes.plot([row.value], [i], "o", color=colour, markersize=5)
        axes.annotate(
            f"{row.value:{unit}.1f}",
            (1.02, i),
            xycoords=("axes fraction", "data"),
            va="center",
            color=colour,
        )
    if unit:
        axes.axvline(0, color=c.muted, linewidth=0.8)
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.tick_params(axis="y", labelcolor=c.ink)
    axes.invert_yaxis()
    axes.grid(axis="x", color=c.faint, linewidth=0.8)
    axes.set_axisbelow(True)


def _of_training(material: Material) -> list[Figure]:
    curves, drawn = material.curves, []
    names = {
        "charts/episodic_return": ("return", "Return", "Mean reward of the sampled gates"),
        "losses/entropy": ("entropy", "Entropy", "Entropy of the policy given a prompt, nats"),
        "losses/explained_variance": (
            "explained-variance",
            "Explained variance",
            "Share of the rewards' variance that the critic foresees",
        ),
    }
    for name, (short, title, what) in names.items():
        if name in curves:
            last = _tail(curves[name])
            drawn.append(
                Figure(
                    short,
                    title,
                    f"{what}: {last:.3f} after {curves[name].shape[1]} updates",
                    lambda axes, c, v=curves[name], s=short: _curve(axes, c, v, s),
                )
            )
    gate_curves = {
        float(name.removeprefix(GATE_SHARE)): values
        for name, values in curves.items()
        if name.startswith(GATE_SHARE)
    }
    if gate_curves:
        order = sorted(gate_curves)
        stacked = np.stack([np.nanmean(gate_curves[gate], axis=0) for gate in order])
        places = [grid(material).index((gate,)) for gate in order]
        ends = ", ".join(f"{g:g}: {v:.0%}" for g, v in zip(order, stacked[:, -1], strict=True))
        drawn.append(
            Figure(
                "gates-training",
                "Gates over training",
                f"Share of decisions for every gate at the end of training: {ends}",
                lambda axes, c: _stacked(axes, c, stacked, order, places),
            )
        )
    if "charts/episodic_return" in curves:
        drawn.append(_consumed(material))
    return drawn


def _tail(values: Float[np.ndarray, "seeds updates"]) -> float:
    return float(np.nanmean(values[:, -1]))


def _curve(axes: Any, c: Look, values: Float[np.ndarray, "seeds updates"], short: str) -> None:
    """The mean over seeds within the band that 90 % of the seeds are in."""
    updates = np.arange(1, values.shape[1] + 1)
    middle = np.ma.masked_invalid(values).mean(axis=0)
    if len(values) > 1:
        low, high = np.nanpercentile(_filled(values), [5, 95], axis=0)
        axes.fill_between(updates, low, high, color=c.accent, alpha=0.22, linewidth=0)
    axes.plot(updates, middle, color=c.accent, linewidth=1.6)
    _end_label(axes, c, float(updates[-1]), float(middle[-1]), f"{middle[-1]:.3g}", c.accent)
    if short == "explained-variance":
        axes.set_ylim(max(-1.0, float(np.nanmin(middle))), 1.02)
    axes.set(xlabel="update", xlim=(0, updates[-1]))
    axes.margins(y=0.08)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", color=c.faint, linewidth=0.8)


def _filled(values: Float[np.ndarray, "seeds updates"]) -> Float[np.ndarray, "seeds updates"]:
    """Where no seed has a value, the percentiles have none either, and NumPy would warn."""
    return np.where(np.isnan(values).all(axis=0)[None], 0.0, values)


def _end_label(axes: Any, c: Look, x: float, y: float, text: str, colour: str) -> None:
    axes.annotate(
        text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", color=colour
    )


def _stacked(
    axes: Any,
    c: Look,
    stacked: Float[np.ndarray, "gates updates"],
    order: Sequence[float],
    places: Sequence[int],
) -> None:
    updates = np.arange(1, stacked.shape[1] + 1)
    colours = [c.colours[f"gate{i}"] for i in places]
    axes.stackplot(updates, stacked, colors=colours, linewidth=0)
    total = np.cumsum(stacked[:, -1])
    for gate, share, top in zip(order, stacked[:, -1], total, strict=True):
        if share > 0.04:
            _end_label(axes, c, float(updates[-1]), top - share / 2, f"{gate:g}", c.ink)
    axes.set(xlabel="update", xlim=(1, updates[-1]), ylim=(0, 1))
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])


def _consumed(material: Material) -> Figure:
    """Accuracy against what it cost: the learner's own curve, and the arms' prices."""
    curves, results = material.curves, material.results
    earned = np.nanmean(curves["charts/episodic_return"], axis=0)
    revealed = curves.get("charts/cells_revealed")
    if revealed is not None:
        asked, axis = np.nanmean(revealed, axis=0), "different cells generated"
    else:
        asked = material.batch * np.arange(1, len(earned) + 1, dtype=float)
        axis = "rewards asked for by one seed"
    arms_of = {name: arm["accuracy"] for name, arm in results.get("arms", {}).items()}
    table = results.get("train_cells")

    def draw(axes: Any, c: Look) -> None:
        axes.set_xscale("log")
        axes.plot(asked, earned, color=c.accent, linewidth=1.6)
        _end_label(axes, c, float(asked[-1]), float(earned[-1]), "RL", c.accent)
        marks = {"supervised": "supervised", "best_fixed": "best fixed"} if table else {}
        if level := arms_of.get("baseline"):
            axes.axhline(level, color=c.muted, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate(
                "baseline",
                (1, level),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="right",
                va="bottom",
                color=c.muted,
            )
        for name in marks:
            if name in arms_of:
                axes.plot([table], [arms_of[name]], "o", color=c.ink, markersize=4.5)
        shown = [(arms_of[name], label) for name, label in marks.items() if name in arms_of]
        close = len(shown) == 2 and abs(shown[0][0] - shown[1][0]) < 0.03
        for i, (value, label) in enumerate(sorted(shown, reverse=True)):
            axes.annotate(
                label,
                (table, value),
                xytext=(6, (5 if i == 0 else -5) if close else 0),
                textcoords="offset points",
                va=("bottom" if i == 0 else "top") if close else "center",
                color=c.ink,
            )
        axes.set(xlabel=axis)
        axes.margins(y=0.12)
        axes.locator_params(axis="y", nbins=4)
        axes.grid(axis="y", color=c.faint, linewidth=0.8)

    return Figure(
        "consumed",
        "Accuracy against generations",
        f"Mean reward {earned[-1]:.3f} after {asked[-1]:,.0f} {axis}; the supervised arm learnt "
        f"from {table or 'an unknown number of'} cells",
        draw,
    )


def _of_difficulty(judged: Judged) -> list[Figure]:
    drawn = []
    for measure in shares.measures(judged):
        found = shares.by_difficulty(judged, measure)
        if found is None:
            continue
        said = "; ".join(
            f"{label}: mean gate {mean:.2f}"
            for label, mean in zip(found.labels, found.mean, strict=True)
        )
        drawn.append(
            Figure(
                f"gate-{measure.short}",
                f"Gate by {measure.title}",
                said,
                lambda axes, c, f=found, m=measure: _shares(axes, c, f, m.axis),
            )
        )
        if found.parts.shape[0] > 1:
            drawn.append(
                Figure(
                    f"parts-{measure.short}",
                    f"Gate of every part by {measure.title}",
                    said,
                    lambda axes, c, f=found, m=measure: _parts(axes, c, f, m.axis),
                    140 + 8 * found.parts.shape[0],
                )
            )
    return drawn


def _shares(axes: Any, c: Look, found: shares.Shares, axis: str) -> None:
    places = np.arange(len(found.labels))
    bottom = np.zeros(len(places))
    for i, share in enumerate(found.share):
        axes.bar(
            places, share, 0.86, bottom, color=c.colours[f"gate{found.colours[i]}"], linewidth=0
        )
        bottom += share
    last = np.cumsum(found.share[:, -1]) - found.share[:, -1] / 2
    for gate, share, y in zip(found.gates, found.share[:, -1], last, strict=True):
        if share > 0.04:
            _end_label(axes, c, len(places) - 0.57, y, f"{gate:g}", c.ink)
    axes.set_xticks(places, found.labels)
    axes.set(xlabel=axis, ylim=(0, 1), xlim=(-0.5, len(places) - 0.5))
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)


def _parts(axes: Any, c: Look, found: shares.Shares, axis: str) -> None:
    """Mean gates as shades between the smallest gate's colour and the largest one's."""
    from matplotlib.patches import Rectangle

    # Colours may be names still, which cannot be mixed: the largest lies thinly on the smallest.
    count = sum(name.startswith("gate") for name in c.colours)
    smallest, largest = c.colours["gate0"], c.colours[f"gate{count - 1}"]
    low, high = found.scale
    rows, columns = found.parts.shape
    axes.add_patch(Rectangle((-0.5, -0.5), columns, rows, facecolor=smallest, linewidth=0))
    for row, column in np.ndindex(rows, columns):
        depth = (float(found.parts[row, column]) - low) / max(high - low, 1e-9)
        place = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(place, 1, 1, facecolor=largest, alpha=depth, linewidth=0))
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xlabel=axis)
    axes.set_ylabel("band or layer")
    axes.set_xticks(range(columns), found.labels)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)


def _of_streams(probe: Any) -> list[Figure]:
    effects = sorted(probe["effects"], key=lambda effect: effect["gate"])
    sites = np.array(probe["sites"], int)
    if not effects or not len(sites):
        return []
    largest = max(effects, key=lambda effect: abs(effect["gate"]))
    dominance = np.mean(np.array(largest["dominance"], float), axis=1)[sites].T
    diversity = [np.mean(np.array(e["diversity"], float), axis=1)[sites] for e in effects]
    streams = probe["streams"] if len(probe["streams"]) == len(dominance) else None
    names = streams or ["trunk", *(f"stream {i}" for i in range(1, len(dominance)))]

    def draw_dominance(axes: Any, c: Look) -> None:
        bottom = np.zeros(len(sites))
        steps = np.linspace(0, sum(n.startswith("gate") for n in c.colours) - 1, len(dominance))
        for share, step in zip(dominance, steps, strict=True):
            axes.bar(sites, share, 0.86, bottom, color=c.colours[f"gate{round(step)}"], linewidth=0)
            bottom += share
        middle = np.cumsum(dominance[:, -1]) - dominance[:, -1] / 2
        for name, y in zip(names, middle, strict=True):
            _end_label(axes, c, float(sites[-1]) + 0.43, float(y), name, c.ink)
        axes.set(xlabel="block", ylim=(0, 1), xlim=(sites[0] - 0.5, sites[-1] + 0.5))
        axes.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])
        axes.spines["bottom"].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)

    def draw_diversity(axes: Any, c: Look) -> None:
        steps = np.linspace(0, sum(n.startswith("gate") for n in c.colours) - 1, len(effects))
        for values, step in zip(diversity, steps, strict=True):
            colour = c.colours[f"gate{round(step)}"]
            axes.plot(sites, values, "o-", color=colour, linewidth=1.6, markersize=3)
        for effect, values in ((effects[0], diversity[0]), (effects[-1], diversity[-1])):
            _end_label(axes, c, float(sites[-1]), float(values[-1]), f"{effect['gate']:g}", c.ink)
        axes.set(xlabel="block")
        axes.grid(axis="y", color=c.faint, linewidth=0.8)
        axes.xaxis.get_major_locator().set_params(integer=True)

    shares_said = ", ".join(f"{n} {v:.0%}" for n, v in zip(names, dominance.mean(1), strict=True))
    return [
        Figure(
            "dominance",
            f"Dominance at gate {largest['gate']:g}",
            f"Share of every stream in the mixed trunk, mean over blocks: {shares_said}",
            draw_dominance,
        ),
        Figure(
            "diversity",
            "Diversity of the streams",
            "One minus the mean cosine of pairs of streams, block by block, mean "
            + ", ".join(
                f"{v.mean():.2f} at gate {e['gate']:g}"
                for e, v in zip(effects, diversity, strict=True)
            ),
            draw_diversity,
        ),
    ]
