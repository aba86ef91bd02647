"""Tables of numbers whose intervals are drawn to scale."""

from collections.abc import Callable, Sequence
from html import escape

from jroute.report.result_rows import ResultRow


def fixed(value: float) -> str:
    """One decimal, with a true minus sign."""
    return f"{value:.1f}".replace("-", "−")


def signed(value: float) -> str:
    """The same with its sign."""
    return f"{value:+.1f}".replace("-", "−")


def interval(row: ResultRow, form: Callable[[float], str] = fixed) -> str:
    """An interval's ends, if it has any."""
    if row.ci95 is None:
        return ""
    return f"{form(row.ci95[0])} to {form(row.ci95[1])}"


def p_value(value: float | None) -> str:
    """As HTML."""
    if value is None:
        return ""
    return "&lt;0.001" if value < 0.001 else f"{value:.3f}"


def scale(rows: Sequence[ResultRow], zero: bool) -> tuple[float, float, list[float]]:
    """End of an axis that holds all rows, and a few round numbers on it."""
    from matplotlib.ticker import MaxNLocator

    ends = [end for row in rows for end in (row.ci95 or (row.value, row.value))]
    ends += [row.value for row in rows] + ([0.0] if zero else [])
    low, high = min(ends), max(ends)
    ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, max(high, low + 1e-6))
    low, high = min(low, float(ticks[0])), max(high, float(ticks[-1]))
    return low, high, [float(tick) for tick in ticks]


def dots(
    rows: Sequence[ResultRow],
    what: str,
    *,
    zero: bool,
    p: bool = False,
    beside: Sequence[ResultRow] = (),
) -> str:
    """A table whose last column is the interval drawn to scale.

    Args:
        rows: What is in it.
        what: Name of the column of values.
        zero: Whether values are differences, and 0 is on the axis.
        p: Whether there are columns of p-values.
        beside: Rows of all tables that are read side by side: they share an axis.
    """
    low, high, ticks = scale([*rows, *beside], zero)

    def at(value: float) -> str:
        return f"{3 + 94 * (value - low) / (high - low):.2f}%"

    lines = "".join(
        f'<line class="{"zero" if zero and tick == 0 else "grid"}" '
        f'x1="{at(tick)}" x2="{at(tick)}" y1="0" y2="100%"/>'
        for tick in ticks
    )
    labels = "".join(
        f'<text x="{at(tick)}" y="13">{escape(f"{tick:g}".replace("-", "−"))}</text>'
        for tick in ticks
    )
    extra = '<th class="n">p</th><th class="n">Holm</th>' if p else ""
    form = signed if zero else fixed

    def line(row: ResultRow) -> str:
        whisker = (
            f'<line class="ci" x1="{at(row.ci95[0])}" x2="{at(row.ci95[1])}" y1="50%" y2="50%"/>'
            if row.ci95
            else ""
        )
        about = f"<small>{escape(row.about)}</small>" if row.about else ""
        tests = "".join(f'<td class="n p">{p_value(one)}</td>' for one in (row.p, row.p_holm))
        return (
            f'<tr{" class=bold" if row.bold else ""}><th scope="row">{escape(row.name)}{about}</th>'
            f'<td class="n v">{form(row.value)}</td>'
            f'<td class="n i">{interval(row, form)}</td>{tests if p else ""}'
            f'<td class="dot"><svg aria-hidden="true">{lines}{whisker}'
            f'<circle cx="{at(row.value)}" cy="50%" r="4.5"/></svg></td></tr>'
        )

    return (
        f'<table class="dots"><thead><tr><th></th><th class="n">{escape(what)}</th>'
        f'<th class="n">95 % interval</th>{extra}<th class="dot"></th></tr></thead>'
        f"<tbody>{''.join(map(line, rows))}</tbody>"
        f'<tfoot><tr><td colspan="{5 if p else 3}"></td><td class="dot">'
        f'<svg aria-hidden="true">{labels}</svg></td></tr></tfoot></table>'
    )
