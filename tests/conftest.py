"""Float64 and eight virtual CPU devices for every test; both must be set before JAX makes its first array."""

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)
