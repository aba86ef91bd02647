"""The fixtures of the outcome tests."""

from tests.outcomes.sums import data, generator, live, make_data, problems, table

__all__ = ["data", "generator", "live", "make_data", "problems", "table"]
