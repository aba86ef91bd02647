"""A run as one HTML page: what was found, and every problem it was found on.

``reading`` takes a run folder into plain ``material``; ``figures`` and ``gate_figures`` draw it on
a ``canvas``, ``problems`` packs the table of problems, ``page`` puts the page together.
"""
