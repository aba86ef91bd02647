"""A run as one HTML page: its verdict, its numbers and figures, and every problem.

A run folder becomes ``ReportData`` (``run_reader``); ``page`` renders it with the templates.

=====================================  ========================================================
``header``, ``sections``               the content of the page's parts
``result_rows``, ``interval_table``    numbers with intervals, as rows and as tables
``problem_table``                      every problem, packed for ``problem_table.js``
``figures``                            the list of figures: ``interval_figures``,
                                       ``training_figures``, ``gate_histograms`` (with
                                       ``difficulty``), ``stream_figures``; drawn by ``svg``
``text``, ``calibration_text``         results as text, for the screen
``episodes``                           every judged problem as an episode, for traces
=====================================  ========================================================
"""
