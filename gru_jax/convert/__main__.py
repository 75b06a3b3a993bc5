"""`python -m gru_jax.convert`: see `gru_jax.convert.cli`."""

import sys

from gru_jax.convert.cli import main

if __name__ == "__main__":
    sys.exit(main())
