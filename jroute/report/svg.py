"""Drawing a figure once: inline in the page, and as files of its own.

A figure names its colours (``ink``, ``accent``, ``gate3``); a look says what they are. In the page
they are CSS variables, so one drawing is right in light and dark.

matplotlib is imported where it is used: doors start without it.
"""

import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from jroute.utils.files import atomic_write

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
class Theme:
    """Colours of a drawing, by name."""

    colours: dict[str, str]

    @property
    def gates(self) -> int:
        """How many gates have a colour."""
        return sum(name.startswith("gate") for name in self.colours)

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
    draw: Callable[[Any, Theme], None]
    height: int = 220
    width: int = WIDTH


def gate_ramp(count: int, mode: str) -> list[str]:
    """Colours of the gates of a grid, from the smallest on; ``mode`` is ``light`` or ``dark``."""
    first, *rest = (np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)]) for c in _RAMP[mode])
    places = np.linspace(0, len(rest) - 1, max(count - 1, 1))
    grown = np.stack([np.interp(places, range(len(rest)), [c[i] for c in rest]) for i in range(3)])
    return ["#" + "".join(f"{round(v):02x}" for v in c) for c in (first, *grown.T)][:count]


def theme(count: int, mode: str = "light") -> Theme:
    """Plain colours."""
    ramp = {f"gate{i}": colour for i, colour in enumerate(gate_ramp(count, mode))}
    return Theme({**(LIGHT if mode == "light" else DARK), **ramp})


def _placeholders(count: int) -> dict[str, str]:
    """Colours that stand for the names until a drawing is in the page."""
    names = [*INK, *(f"gate{i}" for i in range(count))]
    return {name: f"#fe{i:02x}dc" for i, name in enumerate(names)}


def inline(figure: Figure, gates: int) -> str:
    """A figure as an ``<svg>`` whose colours are the page's CSS variables."""
    named = _placeholders(gates)
    drawn = io.StringIO()
    with _drawing(figure, Theme(named)) as canvas:
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
    with _drawing(figure, theme(gates), titled=True) as canvas:
        for file in files:
            kind = file.suffix.removeprefix(".")
            with atomic_write(file) as partial:
                canvas.savefig(
                    partial, format=kind, dpi=200, metadata={"Date": None} if kind == "svg" else {}
                )
    return files


@contextmanager
def _drawing(figure: Figure, colours: Theme, *, titled: bool = False) -> Iterator[Any]:
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


def end_label(axes: Any, x: float, y: float, text: str, colour: str) -> None:
    """Write what ends at a point to its right."""
    axes.annotate(
        text, (x, y), xytext=(5, 0), textcoords="offset points", va="center", color=colour
    )
