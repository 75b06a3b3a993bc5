"""Experiments: recurrent networks trained on synthetic memory tasks, from the command line.

::

    python -m experiments train adding --length 100

This package imports `gru_jax`, never the other way round.
"""
