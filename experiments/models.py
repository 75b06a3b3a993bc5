"""The models: a recurrent cell with a linear readout. Cells and initialisations by name, and numbers of parameters."""

import dataclasses
import functools
import importlib.util
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import gru_jax
from experiments.names import lookup
from gru_jax import cells, initializers

CELLS: dict[str, Any] = {
    "gru": gru_jax.CUDNN,
    "gru-cho2014": gru_jax.CHO2014,
    "gru-goodfellow": gru_jax.GOODFELLOW,
    "gru-refine": cells.RefineGRU(),
    "gru-dreamer": cells.DREAMER,
    "gru-ba2016": cells.BA2016,
    "gru-block": cells.BlockGRU(heads=8),
    "gru-diagonal": cells.DiagonalGRU(),
    "mgu": cells.MGU(),
    "mingru": cells.MinGRU(),
    "ligru": cells.LiGRU(),
    "ugrnn": cells.UGRNN(),
    "mut1": cells.MUT1(),
    "mut2": cells.MUT2(),
    "mut3": cells.MUT3(),
    "cfn": cells.CFN(),
    "lstm": cells.LSTM(),
    "elman": cells.Elman(),
    "leaky": cells.Leaky(time_constant=10.0),
    "leaky-learned": cells.Leaky(),
}
"""The values of `--cell`, beside cells in files of the user's own."""

INITS: dict[str, Callable[[int], dict[str, Any]]] = {
    "default": lambda memory: {},
    "chrono": lambda memory: {"update_bias_init": initializers.chrono(max(memory, 3))},
    "uniform-gate": lambda memory: {"update_bias_init": initializers.uniform_gate},
    "orthogonal": lambda memory: {"kernel_init": initializers.orthogonal},
    "forget-bias": lambda memory: {"update_bias_init": initializers.forget_bias},
}
"""The values of `--init`: functions of the task's longest dependency, in steps, to keyword arguments of `cell.init`.
"default" has LeCun normal input kernels, orthogonal recurrent kernels and zero biases; each other changes one of these.
"""


@functools.cache
def cell(name: str) -> Any:
    """The cell of this name: one of `CELLS`, or "path/to/file.py:MyCell", a cell or the class of one.

    Raises:
      ValueError: if there is no such cell or no such file, or the file has no cell of this name.
      Exception: whatever running the file raises.
    """
    path, separator, attribute = name.rpartition(":")
    if not separator:
        return lookup("cell", CELLS, name)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path) if Path(path).is_file() else None
    if spec is None or spec.loader is None:
        raise ValueError(f"unknown cell {name!r}: there is no file {path!r} of Python")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = getattr(module, attribute, None)
    found = found() if isinstance(found, type) and issubclass(found, cells.CellBase) else found
    if not isinstance(found, cells.Cell):
        raise ValueError(f"unknown cell {name!r}: {path} has no gru_jax.cells.CellBase named {attribute!r}")
    return found


def accepts_init(name: str, init: str) -> bool:
    """Whether the `init` of the cell of this name has the arguments of this initialisation.

    True for the cells of `CELLS`, which raise for one that they cannot have. The `init` of a cell in a user's file may
    have no such arguments; then the cell is initialised by default.
    """
    parameters = inspect.signature(cell(name).init).parameters
    named = {key for key, value in parameters.items() if value.kind is not value.POSITIONAL_ONLY}
    return ":" not in name or named.issuperset(INITS[init](3))


class Params(NamedTuple):
    """The parameters of the model, in float32.

    Attributes:
      cell: parameters of the cell, D to H.
      kernel: of the readout, (H, K).
      bias: of the readout, (K,).
    """

    cell: Any
    kernel: jax.Array
    bias: jax.Array


@dataclasses.dataclass(frozen=True)
class Model:
    """A recurrent cell with a linear readout; hashable.

    Attributes:
      cell: its name; see `cell`.
      initialization: a name in `INITS`.
    """

    cell: str = "gru"
    initialization: str = "default"

    def init(self, key: jax.Array, in_features: int, hidden: int, out_features: int, memory: int) -> Params:
        """New parameters; call it inside `jax.jit`, so that it costs a single compilation.

        Args:
          key: a PRNG key.
          in_features, hidden, out_features: D, H, K.
          memory: the longest dependency of the task, in steps.

        Raises:
          ValueError: if the cell has no such initialisation, as "chrono" for a cell without an update gate.
        """
        key_cell, key_kernel = jax.random.split(key)
        options = lookup("init", INITS, self.initialization)(memory)
        params = cell(self.cell).init(key_cell, in_features, hidden, **options)
        kernel = initializers.lecun_normal(key_kernel, (hidden, out_features), jnp.float32)
        return Params(params, kernel, jnp.zeros((out_features,), jnp.float32))

    def apply(self, params: Params, inputs: jax.Array) -> jax.Array:
        """Outputs (S, B, K) of the readout at every step, for inputs (S, B, D)."""
        _, hs = gru_jax.unroll(cell(self.cell), params.cell, inputs)
        return hs @ params.kernel + params.bias

    def count(self, in_features: int, hidden: int, out_features: int) -> int:
        """The number of parameters.

        >>> Model("gru").count(2, 64, 1)  # 3·64·(2 + 64 + 1) + 64 in the cell, 64 + 1 in the readout
        12993
        """
        shapes = jax.eval_shape(lambda key: self.init(key, in_features, hidden, out_features, 3), jax.random.key(0))
        return sum(leaf.size for leaf in jax.tree.leaves(shapes))

    def fit(self, parameters: int, in_features: int, out_features: int) -> int:
        """The number of units with which the number of parameters is nearest to `parameters`.

        Raises:
          ValueError: if one unit has more than twice as many.

        >>> Model("gru").fit(70_000, 2, 1), Model("gru-block").fit(70_000, 2, 1)
        (151, 416)
        """
        # The number of units must be a multiple of the number of heads.
        group = getattr(cell(self.cell), "heads", 1)
        below, above = 0, group
        while self.count(in_features, above, out_features) < parameters:
            below, above = above, 2 * above
        while above - below > group:
            middle = (below + above) // (2 * group) * group
            if self.count(in_features, middle, out_features) < parameters:
                below = middle
            else:
                above = middle
        counts = {hidden: self.count(in_features, hidden, out_features) for hidden in (below, above) if hidden}
        best = min(counts, key=lambda hidden: abs(counts[hidden] - parameters))
        if counts[best] > 2 * parameters:
            raise ValueError(f"{parameters} parameters are too few: one unit of {self.cell!r} needs {counts[best]}")
        return best
