"""A batch of each task of recall, of automata, of regression and of digits, drawn once for all tests."""

import functools

import jax

from experiments import tasks

KEY = jax.random.key(11)
LENGTH = {
    "selective-copy": 8,
    "mqar": 31,
    "induction": 7,
    "parity": 9,
    "cycle": 9,
    "repeat-previous": 5,
    "time-warp": 4,
    "time-warp-uniform": 4,
    "flip-flop": 40,
    "mackey-glass": 60,
    "digits": 64,
    "digits-permuted": 64,
}
BATCH = 3000


@functools.cache
def drawn(name):
    """One compiled batch of each task for all tests."""
    return jax.jit(tasks.get(name).sample, static_argnums=(1, 2))(KEY, BATCH, LENGTH[name])
