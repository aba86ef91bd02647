"""Figures of gates and streams: who chose which gate, for which problems, and what it did."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jroute.report import difficulty, result_rows
from jroute.report.report_data import SplitReport
from jroute.report.svg import Figure, Theme, end_label

CHOOSING = ("rl", "rl_selected", "exact_gradient", "supervised_features", "supervised")
"""Arms that choose by the prompt, and are shown beside each other."""


def of_difficulty(judged: SplitReport) -> list[Figure]:
    """Gates in groups of problems, and where a gate has several parts each of them."""
    drawn = []
    for measure in difficulty.measures(judged):
        found = difficulty.by_difficulty(judged, measure)
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
                    f"Mean gate over depth by {measure.title}",
                    said,
                    lambda axes, c, f=found, m=measure: _parts(axes, c, f, m.axis),
                    140 + 8 * found.parts.shape[0],
                )
            )
    return drawn


def of_arms(results: Mapping[str, Any]) -> Figure:
    """How often every choosing arm chose each gate, and every seed of RL."""
    counts = results["gates_chosen"]
    chosen = {name: np.array(counts[name], float) for name in CHOOSING if name in counts}
    bars: list[tuple[str, np.ndarray]] = [
        (result_rows.words(name), each.sum(axis=0) / each.sum()) for name, each in chosen.items()
    ]
    gates = np.array(results["gates"], float)
    order = np.argsort(gates)
    seeds = chosen.get("rl", np.zeros((0, len(gates))))
    # Seeds that choose alike stand together.
    fan = seeds[np.argsort(seeds @ gates)] / np.maximum(seeds.sum(axis=1, keepdims=True), 1)

    def draw(axes: Any, c: Theme) -> None:
        def stack(place: float, height: float, share: np.ndarray) -> None:
            left = 0.0
            for colour, gate in enumerate(order):
                axes.barh(
                    place,
                    share[gate],
                    height,
                    left=left,
                    color=c.colours[f"gate{colour}"],
                    linewidth=0,
                )
                left += share[gate]

        for place, (_, share) in enumerate(bars):
            stack(place, 0.8, share)
        each = 1.6 / max(len(fan), 1)
        for i, share in enumerate(fan):
            stack(len(bars) + 0.1 + (i + 0.5) * each - 0.4, each, share)
        left = 0.0
        for gate in order:  # the first bar names the colours
            share = float(bars[0][1][gate]) if bars else 0.0
            if share > 0.04:
                axes.annotate(
                    f"{gates[gate]:g}",
                    (left + share / 2, -0.4),
                    xytext=(0, 3),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    color=c.ink,
                )
            left += share
        names = [name for name, _ in bars] + (["every seed of RL"] if len(fan) else [])
        places = [*range(len(bars)), *([len(bars) + 0.5] if len(fan) else [])]
        axes.set_yticks(places, names)
        axes.tick_params(axis="y", labelcolor=c.ink)
        axes.invert_yaxis()
        axes.set(xlim=(0, 1))
        axes.set_xticks([0, 0.5, 1], ["0", "50", "100 %"])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="x", length=0)

    ends = [
        f"{name}: " + ", ".join(f"{gates[i]:g} {share[i]:.0%}" for i in order)
        for name, share in bars
    ]
    height = 60 + 22 * len(bars) + (44 if len(fan) else 0)
    return Figure("gates-arms", "Gates that every arm chose", "; ".join(ends), draw, height, 520)


def _shares(axes: Any, c: Theme, found: difficulty.GateShares, axis: str) -> None:
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
            end_label(axes, len(places) - 0.57, y, f"{gate:g}", c.ink)
    axes.set_xticks(places, found.labels)
    axes.set(xlabel=axis, ylim=(0, 1), xlim=(-0.5, len(places) - 0.5))
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)


def _parts(axes: Any, c: Theme, found: difficulty.GateShares, axis: str) -> None:
    """Mean gates as shades between the smallest gate's colour and the largest one's."""
    from matplotlib.patches import Rectangle

    # Colours may be names still, which cannot be mixed: the largest lies thinly on the smallest.
    smallest, largest = c.colours["gate0"], c.colours[f"gate{c.gates - 1}"]
    low, high = found.scale
    count, columns = found.parts.shape
    for row, column in np.ndindex(count, columns):
        depth = (float(found.parts[row, column]) - low) / max(high - low, 1e-9)
        place = (column - 0.47, row - 0.47)
        for colour, alpha in ((smallest, 1.0), (largest, depth)):
            axes.add_patch(Rectangle(place, 0.94, 0.94, facecolor=colour, alpha=alpha, linewidth=0))
        if count <= 8:
            axes.annotate(
                f"{found.parts[row, column]:.2f}",
                (column, row),
                ha="center",
                va="center",
                fontsize=9,
                color=c.paper if depth > 0.45 else c.ink,
            )
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(count - 0.5, -0.5), xlabel=axis)
    axes.set_ylabel("band or layer")
    axes.set_xticks(range(columns), found.labels)
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)


def of_streams(probe: Mapping[str, Any]) -> list[Figure]:
    """Dominance and diversity of the streams, as ``python -m jroute.probe`` measured them."""
    effects = sorted(probe["effects"], key=lambda effect: effect["gate"])
    sites = np.array(probe["sites"], int)
    if not effects or not len(sites):
        return []
    largest = max(effects, key=lambda effect: abs(effect["gate"]))
    dominance = np.mean(np.array(largest["dominance"], float), axis=1)[sites].T
    diversity = [np.mean(np.array(e["diversity"], float), axis=1)[sites] for e in effects]
    streams = probe["streams"] if len(probe["streams"]) == len(dominance) else None
    names = streams or ["trunk", *(f"stream {i}" for i in range(1, len(dominance)))]

    def ramp(c: Theme, count: int) -> list[str]:
        return [c.colours[f"gate{round(step)}"] for step in np.linspace(0, c.gates - 1, count)]

    def draw_dominance(axes: Any, c: Theme) -> None:
        bottom = np.zeros(len(sites))
        places = np.arange(len(sites))
        for share, colour in zip(dominance, ramp(c, len(dominance)), strict=True):
            axes.bar(places, share, 0.86, bottom, color=colour, linewidth=0)
            bottom += share
        middle = np.cumsum(dominance[:, -1]) - dominance[:, -1] / 2
        for name, share, y in zip(names, dominance[:, -1], middle, strict=True):
            if share > 0.04:
                end_label(axes, float(places[-1]) + 0.43, float(y), name, c.ink)
        axes.set(xlabel="block", ylim=(0, 1), xlim=(-0.5, len(sites) - 0.5))
        shown = places[:: -(-len(places) // 8)]
        axes.set_xticks(shown, [str(sites[i]) for i in shown])
        axes.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="x", length=0)

    def draw_diversity(axes: Any, c: Theme) -> None:
        for values, colour in zip(diversity, ramp(c, len(effects)), strict=True):
            axes.plot(sites, values, "o-", color=colour, linewidth=1.6, markersize=3)
        for effect, values in ((effects[0], diversity[0]), (effects[-1], diversity[-1])):
            end_label(axes, float(sites[-1]), float(values[-1]), f"{effect['gate']:g}", c.ink)
        axes.set(xlabel="block")
        axes.grid(axis="y", color=c.faint, linewidth=0.8)
        axes.xaxis.get_major_locator().set_params(integer=True)

    shares_said = ", ".join(f"{n} {v:.0%}" for n, v in zip(names, dominance.mean(1), strict=True))
    means_said = ", ".join(
        f"{v.mean():.2f} at gate {e['gate']:g}" for e, v in zip(effects, diversity, strict=True)
    )
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
            f"One minus the mean cosine of pairs of streams, block by block, mean {means_said}",
            draw_diversity,
        ),
    ]
