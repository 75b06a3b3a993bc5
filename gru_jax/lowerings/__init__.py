"""The ways to run a recurrence, a file each. `gru_jax.registry` chooses the first that can run it.

`gru_jax.lowerings`, the function, tells which that is: `gru_jax.lowerings.report`.
"""

from gru_jax.lowerings import associative_scan, fused, native, scan, xla
from gru_jax.registry import register

# In the order in which they are preferred.
register([native.LOWERING, xla.CPU, xla.PORTABLE, associative_scan.LOWERING, scan.LOWERING, fused.LOWERING])
