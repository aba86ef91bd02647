"""Figures of the streams: dominance and diversity, as ``python -m jroute.probe`` measured them."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from jroute.report.svg import Figure, Theme, end_label, hide_bottom, percent_ticks

NARROW = 0.04
"""A stream with a smaller share has no room for a label."""


def stream_figures(probe: Mapping[str, Any]) -> list[Figure]:
    """Return both figures; none if the probe measured no gate or the routing has no site.

    Args:
        probe: The content of ``probe.json``.
    """
    effects = sorted(probe["effects"], key=lambda effect: effect["gate"])
    sites = np.array(probe["sites"], int)
    if not effects or not len(sites):
        return []
    return [_dominance(effects, sites, probe["streams"]), _diversity(effects, sites)]


def _dominance(
    effects: Sequence[Mapping[str, Any]], sites: Int[np.ndarray, " sites"], streams: Sequence[str]
) -> Figure:
    """Plot the share of every stream in the mixed trunk at the gate that mixes most."""
    largest = max(effects, key=lambda effect: abs(effect["gate"]))
    shares = np.mean(np.array(largest["dominance"], float), axis=1)[sites].T
    names = list(streams)
    if len(names) != len(shares):
        names = ["trunk", *(f"stream {i}" for i in range(1, len(shares)))]
    means = ", ".join(f"{n} {v:.0%}" for n, v in zip(names, shares.mean(1), strict=True))
    return Figure(
        "dominance",
        f"Dominance at gate {largest['gate']:g}",
        f"Share of every stream in the mixed trunk, mean over blocks: {means}",
        partial(_draw_dominance, sites=sites, shares=shares, names=names),
    )


def _diversity(effects: Sequence[Mapping[str, Any]], sites: Int[np.ndarray, " sites"]) -> Figure:
    """Plot one minus the mean cosine of pairs of streams, a line for every gate."""
    gates = [float(effect["gate"]) for effect in effects]
    by_gate = [np.mean(np.array(e["diversity"], float), axis=1)[sites] for e in effects]
    means = ", ".join(f"{v.mean():.2f} at gate {g:g}" for g, v in zip(gates, by_gate, strict=True))
    return Figure(
        "diversity",
        "Diversity of the streams",
        f"One minus the mean cosine of pairs of streams, block by block, mean {means}",
        partial(_draw_diversity, sites=sites, gates=gates, by_gate=by_gate),
    )


def _ramp(theme: Theme, count: int) -> list[str]:
    """Return colours from that of the smallest gate to that of the largest."""
    return [theme.gate(round(step)) for step in np.linspace(0, theme.num_gates - 1, count)]


def _draw_dominance(
    axes: Any,
    theme: Theme,
    *,
    sites: Int[np.ndarray, " sites"],
    shares: Float[np.ndarray, "streams sites"],
    names: Sequence[str],
) -> None:
    """Stack the streams' shares, a bar for every site."""
    bottom = np.zeros(len(sites))
    places = np.arange(len(sites))
    for share, colour in zip(shares, _ramp(theme, len(shares)), strict=True):
        axes.bar(places, share, 0.86, bottom, color=colour, linewidth=0)
        bottom += share
    middles = np.cumsum(shares[:, -1]) - shares[:, -1] / 2
    for name, share, middle in zip(names, shares[:, -1], middles, strict=True):
        if share > NARROW:
            end_label(axes, float(places[-1]) + 0.43, float(middle), name, theme.ink)
    axes.set(xlabel="block", ylim=(0, 1), xlim=(-0.5, len(sites) - 0.5))
    shown = places[:: -(-len(places) // 8)]
    axes.set_xticks(shown, [str(sites[i]) for i in shown])
    percent_ticks(axes.yaxis)
    hide_bottom(axes)


def _draw_diversity(
    axes: Any,
    theme: Theme,
    *,
    sites: Int[np.ndarray, " sites"],
    gates: Sequence[float],
    by_gate: Sequence[Float[np.ndarray, " sites"]],
) -> None:
    """Draw a line for every gate; the smallest and the largest are labelled."""
    for values, colour in zip(by_gate, _ramp(theme, len(by_gate)), strict=True):
        axes.plot(sites, values, "o-", color=colour, linewidth=1.6, markersize=3)
    for gate, values in ((gates[0], by_gate[0]), (gates[-1], by_gate[-1])):
        end_label(axes, float(sites[-1]), float(values[-1]), f"{gate:g}", theme.ink)
    axes.set(xlabel="block")
    axes.grid(axis="y", color=theme.faint, linewidth=0.8)
    axes.xaxis.get_major_locator().set_params(integer=True)
