"""Intervals, contrasts, headroom and the verdict: arrays in, numbers out."""
