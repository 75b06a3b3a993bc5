"""Parameters in Flax's linen, under Flax's names, and the checks of attributes that cell and layer share."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from gru_jax import activations, arguments, cells, checks
from gru_jax.initializers import Initializer


class Gate(nn.Module):
    """Weights of one gate: `kernel` and, with a bias_init, `bias`, as `nn.Dense` names and draws them."""

    features: int
    kernel_init: Initializer
    bias_init: Initializer | None
    param_dtype: Any

    @nn.compact
    def __call__(self, width: int) -> tuple[jax.Array, jax.Array | None]:
        self._check("kernel", "(in_features, features)", 2)
        kernel = self.param("kernel", self.kernel_init, (width, self.features), self.param_dtype)
        if self.bias_init is None:
            return kernel, None
        self._check("bias", "(features,)", 1)
        return kernel, self.param("bias", self.bias_init, (self.features,), self.param_dtype)

    def _check(self, name: str, symbols: str, ndim: int) -> None:
        """Checks the value of a parameter that exists. Flax itself compares the shapes of arrays only."""
        if self.has_variable("params", name):
            value = nn.meta.unbox(self.get_variable("params", name))
            checks.weight("/".join(("params", *self.path, name)), value, symbols, ndim)


class Scope(nn.Module):
    """A level of the parameter tree: the submodules that `build` makes lie under this module's name."""

    build: Callable[[int], list[cells.Params]]

    @nn.compact
    def __call__(self, width: int) -> list[cells.Params]:
        return self.build(width)


def check_gru_options(module: nn.Module) -> None:
    """Checks the attributes that cells and layers of a GRU share, and makes the activations `Named` if they can be."""
    inits = ("kernel_init", "recurrent_kernel_init", "bias_init", "update_bias_init")
    arguments.gru_options(
        {name: getattr(module, name) for name in inits},
        {name: getattr(module, name) for name in ("gate_fn", "activation_fn")},
        module.use_bias,
        module.param_dtype,
    )
    for name in ("gate_fn", "activation_fn"):
        object.__setattr__(module, name, activations.canonical(getattr(module, name)))
