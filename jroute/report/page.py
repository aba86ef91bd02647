"""Puts a report together: one HTML file that needs nothing but itself."""

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from jroute.report import svg
from jroute.report.figures import figures, grid
from jroute.report.header import header
from jroute.report.problem_table import for_script, pack
from jroute.report.report_data import ReportData
from jroute.report.sections import sections
from jroute.report.svg import Figure
from jroute.utils.files import write_text


def write(
    material: ReportData,
    folder: Path,
    progress: Callable[[Sequence[Figure]], Iterable[Figure]] = lambda found: found,
) -> list[Path]:
    """Write ``report.html`` and, beside it, ``figures`` as PNG and SVG.

    Args:
        material: What there is to show.
        folder: Where to.
        progress: Hands the figures on one by one, and may show how far it is.

    Returns:
        The page, then the figures.
    """
    found, count = figures(material), len(grid(material))
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    write_text(page, render(material, found))
    files = [svg.save(figure, count, folder / "figures") for figure in progress(found)]
    return [page, *(file for pair in files for file in pair)]


def render(material: ReportData, drawn: Sequence[Figure]) -> str:
    """The whole page."""
    found = {figure.name: figure for figure in drawn}
    gates = grid(material)
    inside = {
        name: svg.inline(figure, len(gates))
        for name, figure in found.items()
        if not name.startswith(("arms-", "contrasts-", "headroom-"))
    }
    style = resources.files("jroute.report").joinpath("page.css").read_text("utf-8")
    style = f"{_variables(len(gates))}\n{style}"
    script = resources.files("jroute.report").joinpath("problem_table.js").read_text("utf-8")
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )

    def panels(*names: str) -> str:
        html = "".join(
            f"<figure{' class=wide' if found[name].width > svg.WIDTH else ''}>"
            f"<figcaption>{escape(found[name].title)}</figcaption>{inside[name]}</figure>"
            for name in names
            if name in inside
        )
        return f'<div class="panels">{html}</div>' if html else ""

    data = for_script(pack(material.splits, gates))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy, quote=True)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(material.name)} · jroute</title>
<style>
{style}
</style>
</head>
<body>
{header(material)}
<main>
{sections(material, panels)}
</main>
<script type="application/json" id="data">{data}</script>
<script>{script}</script>
</body>
</html>
"""


def _digest(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def _variables(count: int) -> str:
    """Every colour of the page, for light and for dark."""

    def block(mode: str) -> str:
        return "".join(f"--{n}:{c};" for n, c in svg.theme(count, mode).colours.items())

    return (
        f":root{{{block('light')}}}\n@media (prefers-color-scheme:dark){{:root{{{block('dark')}}}}}"
    )
