"""Float64 and eight virtual CPU devices for the tests; doctests outside of tests/ run as a user would run them."""

import jax
import pytest

from gru_jax import lowering

# Both must be set before JAX makes an array, and test modules make some when they are imported.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_x64", True)


def pytest_collection_finish():
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def keep(monkeypatch):
    """A function that says whether gradients keep the preactivations, however many weights there are."""
    return lambda kept: monkeypatch.setattr(lowering, "KEPT_FROM", 0 if kept else float("inf"))


@pytest.fixture(autouse=True, scope="module")
def float64():
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
