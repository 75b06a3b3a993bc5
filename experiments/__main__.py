"""`python -m experiments`: see `experiments.cli`."""

import time

STARTED = time.perf_counter()

if __name__ == "__main__":
    # After the clock is read, since importing JAX counts as time to the first step; and before JAX is imported, since
    # the threads that JAX starts must inherit the blocked signals.
    from experiments import interrupts

    interrupts.watch()

    from experiments.cli import main

    raise SystemExit(main(started=STARTED))
