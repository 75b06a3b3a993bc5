"""`python -m experiments`: see `experiments.cli`."""

import time

STARTED = time.perf_counter()

if __name__ == "__main__":
    # After the clock: importing JAX is part of the time to the first step. Before it: JAX starts threads.
    from experiments import interrupts

    interrupts.watch()

    from experiments.cli import main

    raise SystemExit(main(started=STARTED))
