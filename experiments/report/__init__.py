"""The report on a folder of runs: one HTML page that needs nothing else, its figures as PNG, a Markdown table.

::

    python -m experiments report runs

Numbers are the median over the seeds of a run, and the range. They are rounded only as far as leaves them on their side
of the criterion; see `experiments.report.measures`.
"""

from experiments.report.page import write

__all__ = ["write"]
