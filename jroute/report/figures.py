"""Which figures a report has: arms, contrasts and headroom as intervals, and training over time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.optimize import isotonic_regression

from jroute.observe.scalars import GATE_SHARE
from jroute.report import gate_figures
from jroute.report.report_data import ReportData, SplitReport
from jroute.report.result_rows import ResultRow, arms, contrasts, headroom
from jroute.report.svg import Figure, Theme, end_label
from jroute.routing.gate import Gate


def figures(material: ReportData) -> list[Figure]:
    """Every figure that the material has the data for."""
    found: list[Figure] = []
    for judged in material.splits:
        found += _of_results(judged, material.results)
    if material.curves:
        found += _of_training(material)
    if material.splits and material.splits[0].rows:
        found += gate_figures.of_difficulty(material.splits[0])
    if material.results.get("gates_chosen"):
        found.append(gate_figures.of_arms(material.results))
    if material.probe is not None:
        found += gate_figures.of_streams(material.probe)
    return found


def grid(material: ReportData) -> list[Gate]:
    """Gates in order of their colours: all that were chosen or tried, the smallest first."""
    listed = {(float(gate),) for gate in material.results.get("gates", ())}
    chosen = {
        (float(part),) for judged in material.splits for part in np.unique(judged.gates).tolist()
    }
    return sorted(listed | chosen)


def _of_results(judged: SplitReport, results: Any) -> list[Figure]:
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


def _intervals(axes: Any, c: Theme, rows: Sequence[ResultRow], unit: str) -> None:
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


def _of_training(material: ReportData) -> list[Figure]:
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


def _curve(axes: Any, c: Theme, values: Float[np.ndarray, "seeds updates"], short: str) -> None:
    """The mean over seeds within the band that 90 % of the seeds are in."""
    updates = np.arange(1, values.shape[1] + 1)
    if np.isnan(values).all():
        axes.text(0.5, 0.5, "does not exist here", ha="center", transform=axes.transAxes)
        return
    middle = np.ma.masked_invalid(values).mean(axis=0).filled(np.nan)
    if len(values) > 1:
        low, high = np.nanpercentile(_filled(values), [5, 95], axis=0)
        axes.fill_between(updates, low, high, color=c.accent, alpha=0.22, linewidth=0)
    axes.plot(updates, middle, color=c.accent, linewidth=1.6)
    if np.isfinite(middle[-1]):
        end_label(axes, float(updates[-1]), float(middle[-1]), f"{middle[-1]:.3g}", c.accent)
    if short == "explained-variance":
        axes.set_ylim(max(-1.0, float(np.nanmin(middle))), 1.02)
    axes.set(xlabel="update", xlim=(0, updates[-1]))
    axes.margins(y=0.08)
    axes.locator_params(axis="y", nbins=4)
    axes.grid(axis="y", color=c.faint, linewidth=0.8)


def _filled(values: Float[np.ndarray, "seeds updates"]) -> Float[np.ndarray, "seeds updates"]:
    """Where no seed has a value, the percentiles have none either, and NumPy would warn."""
    return np.where(np.isnan(values).all(axis=0, keepdims=True), 0.0, values)


def _stacked(
    axes: Any,
    c: Theme,
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
            end_label(axes, float(updates[-1]), top - share / 2, f"{gate:g}", c.ink)
    axes.set(xlabel="update", xlim=(1, updates[-1]), ylim=(0, 1))
    axes.set_yticks([0, 0.5, 1], ["0", "50", "100 %"])


def _consumed(material: ReportData) -> Figure:
    """Accuracy against what it cost: the learner's own curve, and the arms' prices."""
    curves, results = material.curves, material.results
    earned = np.nanmean(curves["charts/episodic_return"], axis=0)
    revealed = curves.get("charts/cells_revealed")
    if revealed is not None:
        asked, axis = np.nanmean(revealed, axis=0), "different cells generated"
    else:
        asked = material.batch * np.arange(1, len(earned) + 1, dtype=float)
        axis = "rewards asked for by one seed"
    found = {name: arm["accuracy"] for name, arm in results.get("arms", {}).items()}
    table = results.get("train_cells")
    dots = [("rl", "RL", float(asked[-1]))] if "rl" in found else []
    if table:
        named = (("supervised", "supervised"), ("exact_gradient", "exact gradient"))
        known = (*named, ("best_fixed", "best fixed"))
        dots += [(name, label, float(table)) for name, label in known if name in found]

    def draw(axes: Any, c: Theme) -> None:
        from matplotlib.ticker import LogLocator, NullLocator

        axes.set_xscale("log")
        wide = asked[-1] > 100 * asked[0]
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.plot(asked, earned, color=c.accent, linewidth=1.6, alpha=0.55)
        for name, _, place in dots:
            axes.plot(
                [place], [found[name]], "o", color=c.accent if name == "rl" else c.ink, markersize=5
            )
        axes.margins(x=0.06, y=0.12)
        if level := found.get("baseline"):
            axes.axhline(level, color=c.muted, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate(
                "baseline",
                (0, level),
                xycoords=("axes fraction", "data"),
                xytext=(2, 2),
                textcoords="offset points",
                va="bottom",
                color=c.muted,
            )
        low, high = axes.get_ylim()
        for (name, label, place), y in zip(
            dots, apart([found[n] for n, _, _ in dots], 0.08 * (high - low)), strict=True
        ):
            end_label(axes, place, y, label, c.accent if name == "rl" else c.ink)
        axes.set(xlabel=axis)
        axes.locator_params(axis="y", nbins=4)
        axes.grid(axis="y", color=c.faint, linewidth=0.8)

    return Figure(
        "consumed",
        "Accuracy against generations",
        f"Mean reward {earned[-1]:.3f} after {asked[-1]:,.0f} {axis}; "
        + "; ".join(f"{label} {found[n]:.3f} from {place:,.0f}" for n, label, place in dots),
        draw,
    )


def apart(values: Sequence[float], least: float) -> list[float]:
    """Heights for labels: near their values, in the same order, and not nearer than ``least``."""
    order = np.argsort(values, kind="stable")
    gaps = least * np.arange(len(values))
    placed = np.empty(len(values))
    placed[order] = isotonic_regression(np.asarray(values, float)[order] - gaps).x + gaps
    return placed.tolist()
