"""A small run of the command line, and what is left of it in its folder."""

import json

import chex
import jax

from experiments import config, runs, training

SMALL = "--length 6 --hidden 8 --batch 4 --chunk 5 --evaluation 8 --seeds 2 --checkpoint-seconds 0"


def assert_same_run(one, other):
    """Equal bit for bit: logs, result, and the parameters of the last checkpoint."""
    for name in (runs.CONFIG, runs.METRICS, runs.SUMMARY):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    chex.assert_trees_all_equal(last_state(one), last_state(other))


def last_state(folder):
    settings = config.Config.from_dict(json.loads((folder / runs.CONFIG).read_text())["config"])
    run = runs.Run(folder)
    state = run.restore(jax.eval_shape(lambda: training.init(settings)), None)
    run.close()
    return state._replace(key=jax.random.key_data(state.key))
