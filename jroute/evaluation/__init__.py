"""Judging: statistics, reports, and the lm-evaluation-harness adapter."""
