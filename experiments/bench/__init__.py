"""Benchmarks: gru_jax beside the GRUs of other frameworks, in one process, on the same weights and inputs.

::

    python -m experiments bench --quick

What is timed is interleaved: in every round each peer runs in its turn, so that what disturbs the machine disturbs all.
Times are wall-clock medians over rounds; a ratio is the median of the ratios within the rounds.
"""
