"""The figure of an ablation."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jroute.probe.plots import open_figure, shades


def plot_ablation(rows: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Draw the accuracy of every routing and gate with 95 % intervals, a panel for every preset.

    Gate 0, the plain model, is a line with a band.

    Args:
        rows: Cells of the grid, as ``AblationRun.rows`` returns them.
        file: File of the figure.
    """
    names = ("streams", "sites", "guards")
    panels: dict[str, dict[tuple[Any, ...], list[Mapping[str, Any]]]] = {}
    for cell in rows:
        routings = panels.setdefault(cell["preset"], {})
        routings.setdefault(tuple(cell[name] for name in names), []).append(cell)
    gates = sorted({cell["gate"] for cell in rows if cell["gate"]})
    colours = dict(zip(gates, shades(len(gates)), strict=True))
    columns = min(len(panels), 3)
    sizes = [len(routings) for routings in panels.values()]
    heights = [max(sizes[i : i + columns]) + 6 for i in range(0, len(sizes), columns)]
    with open_figure(
        file, len(heights), columns, 4.8 * columns, 0.2 * sum(heights), height_ratios=heights
    ) as axes:
        for panel in axes.flat[len(panels) :]:
            panel.axis("off")
        for (preset, routings), panel in zip(panels.items(), axes.flat, strict=False):
            for place, line in enumerate(routings.values()):
                for cell in line:
                    low, high = (100 * end for end in cell["ci95"])
                    accuracy = 100 * cell["accuracy"]
                    if not cell["gate"]:
                        if not place:
                            panel.axvline(accuracy, color="grey", linewidth=1, label="gate 0")
                            panel.axvspan(low, high, color="grey", alpha=0.12, linewidth=0)
                        continue
                    shift = 0.5 * ((gates.index(cell["gate"]) + 1) / (len(gates) + 1) - 0.5)
                    panel.errorbar(
                        accuracy,
                        place + shift,
                        xerr=[[max(accuracy - low, 0)], [max(high - accuracy, 0)]],
                        fmt="o",
                        color=colours[cell["gate"]],
                        elinewidth=0.8,
                        label="" if place else f"gate {cell['gate']:g}",
                    )
            texts = ["  ".join(map(str, key)) for key in routings]
            panel.set_yticks(range(len(texts)), texts, fontsize="x-small")
            panel.set(
                title=preset,
                ylim=(len(texts) - 0.4, -0.6),
                xlim=(0, 100),
                xlabel="accuracy (%)",
            )
        axes[0, 0].set_ylabel("streams, sites, guards")
        axes[0, 0].figure.legend(
            *axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=len(gates) + 1
        )
