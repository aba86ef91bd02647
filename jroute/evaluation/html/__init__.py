"""A run as one HTML page: what was found, and every problem it was found on.

``material`` reads a run folder into plain arrays, ``figures`` draws them, ``problems`` packs the
table of problems, ``page`` puts the page together.
"""
