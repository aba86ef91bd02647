"""Routings side by side: preset, streams, sites, guards and gate on one split."""
