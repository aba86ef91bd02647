"""Figures as SVG: inline in the page, and as separate files.

matplotlib draws them. A library that draws in the browser, such as Vega-Lite, would embed close to
a megabyte of JavaScript in every report, and its static SVG has fixed colours. matplotlib's SVG
takes a few kilobytes per figure, needs no script, prints as it is, and names its colours: every
colour becomes a CSS variable of the page, so one drawing serves light and dark mode.

matplotlib is imported where it is used, so that commands start without it.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from jroute.utils.files import write_bytes

NAMES = ("ink", "muted", "faint", "accent", "paper")
LIGHT = dict(zip(NAMES, ("#1b1f24", "#5b636d", "#dfe3e8", "#3350c4", "#ffffff"), strict=True))
DARK = dict(zip(NAMES, ("#e8eaed", "#9aa3ad", "#343a42", "#93a7ff", "#14171a"), strict=True))

_RAMP = {  # grey for no mixing, then teals of growing contrast to the page
    "light": ("#c3c8ce", "#a9d8d0", "#2f9488", "#0b4741"),
    "dark": ("#565d66", "#1f5f59", "#3fae9f", "#bdeee5"),
}

WIDTH = 340
"""Width of a small figure in points, which are pixels of the page: as wide as a phone."""

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
class Theme:
    """The colours of a drawing, by name; each is an attribute as well."""

    colours: dict[str, str]

    @property
    def num_gates(self) -> int:
        """Number of gates that have a colour."""
        return sum(name.startswith("gate") for name in self.colours)

    def gate(self, index: int) -> str:
        """Return the colour of a gate by its index in the grid, the smallest gate first."""
        return self.colours[f"gate{index}"]

    def __getattr__(self, name: str) -> str:
        try:
            return self.colours[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: Stem of its files and prefix of its ids in the page.
        title: Subject, in a few words.
        description: Content in words, for readers who cannot see it.
        draw: Draws it on matplotlib axes.
        height: Height in points.
        width: Width in points.
        in_page: Whether the page shows it; otherwise it is written to files only.
    """

    name: str
    title: str
    description: str
    draw: Callable[[Any, Theme], None]
    height: int = 220
    width: int = WIDTH
    in_page: bool = True


def gate_ramp(num_gates: int, mode: str) -> list[str]:
    """Return a colour for every gate of a grid, the smallest first.

    Args:
        num_gates: Size of the grid.
        mode: ``light`` or ``dark``.
    """
    grey, *teals = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in _RAMP[mode])
    positions = np.linspace(0, len(teals) - 1, max(num_gates - 1, 1))
    channels = [np.interp(positions, range(len(teals)), [c[i] for c in teals]) for i in range(3)]
    colours = (grey, *np.stack(channels).T)
    return ["#" + "".join(f"{round(v):02x}" for v in colour) for colour in colours][:num_gates]


def theme(num_gates: int, mode: str = "light") -> Theme:
    """Return the colours of light or dark mode as hexadecimal codes."""
    ramp = {f"gate{i}": colour for i, colour in enumerate(gate_ramp(num_gates, mode))}
    return Theme({**(LIGHT if mode == "light" else DARK), **ramp})


def _placeholders(num_gates: int) -> dict[str, str]:
    """Return a unique code for every colour, to be replaced by its CSS variable."""
    names = [*NAMES, *(f"gate{i}" for i in range(num_gates))]
    return {name: f"#fe{i:02x}dc" for i, name in enumerate(names)}


def inline(figure: Figure, num_gates: int) -> Markup:
    """Return a figure as an ``<svg>`` element whose colours are CSS variables of the page.

    matplotlib escapes every text that it draws, so the element needs no further escaping.
    """
    placeholders = _placeholders(num_gates)
    buffer = io.StringIO()
    with _drawing(figure, Theme(placeholders)) as drawing:
        drawing.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*font-family: [^;\"]*;?", "", text)
    text = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--sans)", text)
    # The page holds several figures, so their ids take the figure's name as prefix.
    text = re.sub(r'\bid="([^"]+)"', rf'id="{figure.name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{figure.name}-\1)", text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{figure.name}-\1"', text)
    for name, code in placeholders.items():
        text = text.replace(code, f"var(--{name})")
    matplotlib_tag = text[: text.index(">") + 1]
    view_box = re.search(r'viewBox="([^"]*)"', matplotlib_tag)
    assert view_box is not None
    tag = Markup(
        '<svg viewBox="{}" width="{}" role="img" aria-label="{}" '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
    ).format(view_box[1], figure.width, figure.description)
    return tag + Markup(text[len(matplotlib_tag) :])


def save(figure: Figure, num_gates: int, folder: Path) -> list[Path]:
    """Write a figure as PNG and SVG files with its title, and return their paths."""
    files = [folder / f"{figure.name}.{kind}" for kind in ("png", "svg")]
    with _drawing(figure, theme(num_gates), titled=True) as drawing:
        for file in files:
            kind = file.suffix.removeprefix(".")
            metadata = {"Date": None} if kind == "svg" else {}
            image = io.BytesIO()
            drawing.savefig(image, format=kind, dpi=200, metadata=metadata)
            write_bytes(file, image.getvalue())
    return files


@contextmanager
def _drawing(figure: Figure, colours: Theme, *, titled: bool = False) -> Iterator[Any]:
    """Draw a figure with matplotlib, in the page's style and the given colours."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Drawing

    style = {
        **_STYLE,
        "text.color": colours.ink,
        "xtick.color": colours.faint,
        "ytick.color": colours.faint,
        "xtick.labelcolor": colours.muted,
        "ytick.labelcolor": colours.muted,
        "axes.edgecolor": colours.faint,
        "axes.labelcolor": colours.muted,
        "axes.facecolor": "none",
        "figure.facecolor": colours.paper,
    }
    with matplotlib.rc_context(style):
        drawing = Drawing((figure.width / 72, figure.height / 72), layout="constrained")
        FigureCanvasAgg(drawing)
        axes = drawing.subplots()
        figure.draw(axes, colours)
        if titled:
            axes.set_title(figure.title, loc="left", fontsize=12, fontweight="bold")
        yield drawing


def end_label(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    """Write a label to the right of a point."""
    axes.annotate(
        text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", color=colour
    )


def percent_ticks(axis: Any) -> None:
    """Label a matplotlib axis of shares in per cent."""
    axis.set_ticks([0, 0.5, 1], ["0", "50", "100 %"])


def hide_bottom(axes: Any) -> None:
    """Hide the line and the ticks below bars."""
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)
