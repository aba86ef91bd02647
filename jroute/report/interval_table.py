"""Tables of numbers whose 95 % intervals are drawn to scale on one axis."""

from collections.abc import Sequence
from dataclasses import dataclass

from jroute.report.result_rows import ResultRow


@dataclass(frozen=True)
class Axis:
    """A horizontal axis from ``low`` to ``high`` with ticks at round numbers.

    Attributes:
        low: Its left end.
        high: Its right end.
        ticks: The round numbers.
        zero: Whether values are differences, and 0 is on the axis.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    zero: bool

    def position(self, value: float) -> str:
        """Return the place of a value as a percentage of the width."""
        return f"{3 + 94 * (value - self.low) / (self.high - self.low):.2f}%"

    def tick_class(self, tick: float) -> str:
        """Return the CSS class of a tick's line."""
        return "zero" if self.zero and tick == 0 else "grid"

    @staticmethod
    def tick_label(tick: float) -> str:
        """Return a tick's number with a true minus sign."""
        return f"{tick:g}".replace("-", "−")


@dataclass(frozen=True)
class IntervalTable:
    """A table with a number, its interval and a drawing of both in every row.

    Attributes:
        rows: The rows.
        unit: Heading of the numbers.
        axis: The axis of the drawings.
        p_values: Whether there are columns of p-values.
    """

    rows: Sequence[ResultRow]
    unit: str
    axis: Axis
    p_values: bool = False

    @property
    def names(self) -> list[str]:
        """The labels of the rows."""
        return [row.name for row in self.rows]


def axis_of(rows: Sequence[ResultRow], *, zero: bool) -> Axis:
    """Return an axis that holds every row with its interval.

    Args:
        rows: The rows of all tables that are read side by side.
        zero: Whether values are differences, and 0 is on the axis.
    """
    from matplotlib.ticker import MaxNLocator

    values = [end for row in rows for end in (row.value, *(row.ci95 or ()))]
    values += [0.0] if zero else []
    low, high = min(values), max(values)
    locator = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10])
    ticks = [float(tick) for tick in locator.tick_values(low, max(high, low + 1e-6))]
    return Axis(min(low, ticks[0]), max(high, ticks[-1]), tuple(ticks), zero)


def interval_tables(
    rows_by_split: Sequence[Sequence[ResultRow]],
    unit: str,
    *,
    zero: bool,
    p_values: bool = False,
) -> list[IntervalTable | None]:
    """Return a table for each split, all on one axis; ``None`` for a split without rows.

    Args:
        rows_by_split: The rows of every split.
        unit: Heading of the numbers.
        zero: Whether values are differences, and 0 is on the axis.
        p_values: Whether there are columns of p-values.
    """
    all_rows = [row for rows in rows_by_split for row in rows]
    if not all_rows:
        return [None for _ in rows_by_split]
    axis = axis_of(all_rows, zero=zero)
    return [IntervalTable(rows, unit, axis, p_values) if rows else None for rows in rows_by_split]
