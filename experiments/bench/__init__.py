"""Benchmarks: gru_jax and the GRUs of other frameworks, in one process, on the same weights and inputs.

::

    python -m experiments bench --quick

Samples are interleaved: in every round each peer runs once, so that a disturbance of the machine affects all. Times are
wall-clock medians over rounds; a ratio is the median of the ratios within the rounds.
"""
