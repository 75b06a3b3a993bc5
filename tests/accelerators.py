"""What a gradient becomes on an H100 or a TPU, compiled on a machine that has neither.

`python -m tests.accelerators h100`, or `v5e`. XLA's compilers for both are Python packages (`jax-cuda13-plugin` and
`jax-cuda13-pjrt`; `libtpu`), which need no device.
"""

import importlib.util
import json
import sys

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 patch: 0 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
COMPILERS = {"h100": "jax_plugins.xla_cuda13", "v5e": "libtpu"}
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_gpu_autotune_level=0",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def is_installed(target):
    """Whether there is a compiler for "h100" or "v5e"."""
    package, _, _ = COMPILERS[target].rpartition(".")
    found = (not package or importlib.util.find_spec(package)) and importlib.util.find_spec(COMPILERS[target])
    return bool(found and found.origin)


def device(target):
    """One that compiles only."""
    import jax
    from jax.experimental import topologies

    jax.devices()  # loads the plugins
    if target == "h100":
        described = topologies.get_topology_desc("h100", platform="cuda", target_config=H100, topology="1x1x1")
    else:
        described = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    return described.devices[0]


def temporary_bytes(target):
    """Of compiled gradients, and what the CPU would save; by cell and whether it may be more than inputs and states.

    More is that of "auto" for the LSTM: by autodiff of the scan, which no other platform has.
    """
    import jax
    import jax.numpy as jnp

    import gru_jax
    from gru_jax.cells import LSTM

    sharding = jax.sharding.SingleDeviceSharding(device(target))
    found = {}
    for name, cell in {"cudnn": gru_jax.CUDNN, "cho2014": gru_jax.CHO2014, "lstm": LSTM()}.items():
        args = cell.init(jax.random.key(0), 64, 160), jnp.ones((37, 9, 64))
        args = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), args)
        for more in (True, False):
            gru_jax.config.keep_residuals = more

            def gradient(params, xs, cell=cell, method="auto" if more and name == "lstm" else "fused"):
                def loss(params, xs):
                    return (gru_jax.unroll(cell, params, xs, method=method)[1] ** 2).sum()

                return jax.grad(loss, (0, 1))(params, xs)

            compiled = jax.jit(gradient).lower(*args).compile()
            saved = sum(sum(chosen.saved.values()) for chosen in gru_jax.lowerings(gradient)(*args))
            found[f"{name} {more}"] = saved, compiled.memory_analysis().temp_size_in_bytes
    return found


if __name__ == "__main__":
    print(json.dumps(temporary_bytes(sys.argv[1])))
