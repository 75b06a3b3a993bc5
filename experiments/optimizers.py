"""Adam with clipped gradients, and its learning-rate schedules."""

from collections.abc import Callable

import optax

from experiments.names import lookup

SCHEDULES: dict[str, Callable[[float, int], optax.Schedule]] = {
    "constant": lambda peak, steps: optax.constant_schedule(peak),
    "cosine": lambda peak, steps: optax.cosine_decay_schedule(peak, steps),
    "linear": lambda peak, steps: optax.linear_schedule(peak, 0.0, steps),
}
"""Functions of the peak and the number of steps after the warm-up; cosine and linear end at 0."""


def schedule(name: str, learning_rate: float, warmup: int, steps: int) -> optax.Schedule:
    """The learning rate as a function of the optimizer step.

    Args:
      name: in `SCHEDULES`.
      learning_rate: the peak.
      warmup: number of steps before the schedule, in which the rate rises linearly from 0 to the peak.
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
    """Adam with gradients clipped by their global norm (Pascanu, Mikolov & Bengio, ICML 2013)."""
    return optax.chain(optax.clip_by_global_norm(clip), optax.adam(learning_rate))
