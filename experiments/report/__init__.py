"""The report on a folder of runs: one self-contained HTML page, its figures as PNG, and a Markdown table.

::

    python -m experiments report runs

Numbers are the median over the seeds of a run, and the range. Rounding never moves them across the criterion; see
`experiments.report.measures`.
"""

from experiments.report.page import write

__all__ = ["write"]
