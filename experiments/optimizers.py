"""Adam on clipped gradients, and the schedules of its learning rate."""

from collections.abc import Callable

import optax

from experiments.names import lookup


def _constant(peak: float, steps: int) -> optax.Schedule:
    return optax.constant_schedule(peak)


def _cosine(peak: float, steps: int) -> optax.Schedule:
    return optax.cosine_decay_schedule(peak, steps)


def _linear(peak: float, steps: int) -> optax.Schedule:
    return optax.linear_schedule(peak, 0.0, steps)


SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
}
"""From the peak, over the steps after the warm-up: constant; along half a cosine to 0; in a straight line to 0."""


def schedule(name: str, learning_rate: float, warmup: int, steps: int) -> optax.Schedule:
    """The learning rate of every optimizer step.

    Args:
      name: in `SCHEDULES`.
      learning_rate: the peak.
      warmup: steps of a linear rise from 0 to the peak, before the schedule.
      steps: of the whole run.

    >>> rates = schedule("linear", 1.0, warmup=2, steps=6)
    >>> [round(float(rates(step)), 2) for step in range(7)]
    [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    after = lookup("schedule", SCHEDULES, name)(learning_rate, max(steps - warmup, 1))
    if not warmup:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, learning_rate, warmup), after], [warmup])


def adam(learning_rate: optax.Schedule, clip: float) -> optax.GradientTransformation:
    """Adam on gradients whose global norm is clipped (Pascanu, Mikolov & Bengio, ICML 2013)."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(learning_rate))
