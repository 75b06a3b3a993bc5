"""Float64 and eight virtual CPU devices for the tests; doctests outside of tests/ run as a user would run them.

Most of a test's time is the compiler's: it makes its full effort for modules marked `optimized`, the recurrences, and
less for what is built of them. Modules marked `float32` have JAX's own default of precision.
"""

import gc

import jax
import pytest

import gru_jax
from gru_jax import policy
from gru_jax.lowerings.native import native_import_error

# Both must be set before JAX makes an array, and test modules make some when they are imported.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)
# Nobody reads, in these programs, where an operation comes from; to write it takes a thirtieth of the time.
jax.config.update("jax_traceback_in_locations_limit", 0)

if native_import_error:  # the tests run without them too, and need not be told
    gru_jax.config.native = False


def pytest_collection_finish():
    jax.config.update("jax_enable_x64", False)
    gc.freeze()  # what has been imported stays, and need not be searched again


@pytest.fixture
def keep(monkeypatch):
    """A function that says whether gradients keep the preactivations, however many there are, and weights."""

    def say(kept):
        monkeypatch.setattr(policy, "SAVED_PREACTIVATIONS_MIN_WEIGHTS", 0 if kept else float("inf"))
        monkeypatch.setattr(policy, "SAVED_PREACTIVATIONS_MAX_ELEMENTS", 0)

    return say


@pytest.fixture(autouse=True, scope="module")
def float64(request):
    jax.config.update("jax_enable_x64", request.node.get_closest_marker("float32") is None)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture(autouse=True, scope="module")
def effort(request):
    hasty = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", hasty or not request.node.get_closest_marker("optimized"))
    yield
    jax.config.update("jax_disable_most_optimizations", hasty)


@pytest.fixture(autouse=True, scope="module")
def caches(request):
    """What one test module has compiled, another loads, in whichever process, and the next time: draws, most often."""
    if (cache := getattr(request.config, "cache", None)) is not None:
        jax.config.update("jax_compilation_cache_dir", str(cache.mkdir("compiled")))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    yield
    jax.clear_caches()  # gigabytes by the end otherwise, which the garbage collector goes through again and again
