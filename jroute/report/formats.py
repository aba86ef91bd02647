"""Numbers as the page writes them; the templates use these functions as filters."""

from collections.abc import Mapping
from typing import Any


def decimal(value: float, signed: bool = False) -> str:
    """Return a number with one decimal and a true minus sign: ``−1.5``, ``+1.5`` if signed."""
    return f"{value:{'+' if signed else ''}.1f}".replace("-", "−")


def interval(ends: tuple[float, float] | None, signed: bool = False) -> str:
    """Return an interval as ``1.0 to 2.0``; empty if there is none."""
    return "" if ends is None else f"{decimal(ends[0], signed)} to {decimal(ends[1], signed)}"


def share(estimate: Mapping[str, Any]) -> str:
    """Return a share and its interval in per cent: ``31.2 % (28.4 to 34.2)``."""
    low, high = (decimal(100 * end) for end in estimate["ci95"])
    return f"{decimal(100 * estimate['share'])} % ({low} to {high})"


def p_value(value: float | None) -> str:
    """Return a p-value with three decimals; empty if there is none."""
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def thousands(value: float) -> str:
    """Return a whole number with commas: ``1,319``."""
    return f"{value:,.0f}"


FILTERS = {
    function.__name__: function for function in (decimal, interval, share, p_value, thousands)
}
"""Every function of this module by name."""
