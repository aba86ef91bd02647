"""The page: one HTML file that needs nothing but itself.

The templates in ``templates`` hold all of its HTML and prose. They escape every value, so texts
that a model or a data set wrote are shown and never run. Only four things enter the page as they
are: the figures (``jroute.report.svg``), the problem table's JSON
(``jroute.report.problem_table``), and the style sheet and the script of this package.
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from jroute.report import svg
from jroute.report.figures import figures
from jroute.report.formats import FILTERS
from jroute.report.header import header
from jroute.report.problem_table import pack, script_json
from jroute.report.report_data import ReportData
from jroute.report.result_rows import arm_label
from jroute.report.sections import run_facts, split_tables
from jroute.report.svg import Figure
from jroute.utils.files import write_text
from jroute.utils.together import written_together


def write(
    data: ReportData,
    folder: Path,
    progress: Callable[[Sequence[Figure]], Iterable[Figure]] = lambda drawn: drawn,
) -> list[Path]:
    """Write ``report.html`` and, beside it, ``figures`` as PNG and SVG.

    Args:
        data: Content of the report.
        folder: Folder for the page.
        progress: Iterates over the figures, and may show a progress bar.

    Returns:
        The path of the page, then those of the figures.
    """
    drawn, num_gates = figures(data), len(data.grid)
    with written_together(folder, "report") as partial:
        (partial / "figures").mkdir()
        write_text(partial / "report.html", render(data, drawn))
        pairs = [svg.save(figure, num_gates, partial / "figures") for figure in progress(drawn)]
    figure_files = [folder / "figures" / file.name for pair in pairs for file in pair]
    return [folder / "report.html", *figure_files]


def render(data: ReportData, drawn: Sequence[Figure]) -> str:
    """Return the page as HTML.

    Args:
        data: Content of the report.
        drawn: Its figures.
    """
    grid = data.grid
    script = _asset("problem_table.js")
    return (
        _environment()
        .get_template("page.html")
        .render(
            policy=_content_security_policy(script),
            variables=_css_variables(len(grid)),
            style=_asset("page.css"),
            script=script,
            problems=script_json(pack(data.splits, grid)),
            data=data,
            header=header(data),
            tables=split_tables(data),
            facts=run_facts(data.results),
            figures={
                figure.name: {
                    "title": figure.title,
                    "wide": figure.width > svg.WIDTH,
                    "svg": svg.inline(figure, len(grid)),
                }
                for figure in drawn
                if figure.in_page
            },
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("jroute.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS, arm_label=arm_label)
    return environment


def _asset(name: str) -> Markup:
    """Return a file of this package, to be embedded in the page verbatim."""
    return Markup(resources.files("jroute.report").joinpath(name).read_text("utf-8"))


def _content_security_policy(script: str) -> str:
    """Return a policy that loads nothing and runs one script."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _css_variables(num_gates: int) -> str:
    """Return CSS that defines every colour of the page, for light and for dark mode."""

    def block(mode: str) -> str:
        colours = svg.theme(num_gates, mode).colours
        return "".join(f"--{name}:{colour};" for name, colour in colours.items())

    return (
        f":root{{{block('light')}}}\n@media (prefers-color-scheme:dark){{:root{{{block('dark')}}}}}"
    )
