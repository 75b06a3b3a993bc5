"""Recurrent cells as values: their equations and parameters. `gru_jax.unroll` runs all of them.

This package is about the GRU. The other cells are here to be compared with it:

- `LSTM`
- `Elman`, the simple recurrent network, and `Leaky`, the same with time constants, fixed or learned
- `MGU`, the minimal gated unit; `UGRNN`, a GRU without reset gate, and `LiGRU`, the same with ReLU
- `MinGRU`, whose gates depend on the input only
- `RefineGRU`, a GRU with a refine gate
- `LayerNormGRU`, a GRU with normalised preactivations: `DREAMER`, `BA2016`
- `BlockGRU` and `DiagonalGRU`, whose recurrent weights are block-diagonal, and diagonal
- `MUT1`, `MUT2`, `MUT3`, mutants of the GRU
- `CFN`, the chaos-free network

A cell is a frozen, hashable dataclass with ``init(key, in_features, features) -> params``, ``step(params, h_tm1,
x_t, *, resets=None, reset_state=None) -> h_t``, ``initial_state(params, batch)``, ``output(state)``, and
``gates(params, h_tm1, x_t)``, which returns the values of its gates by name; see `Cell`.
A gate that interpolates keeps the state where it is 1. If a paper's gate replaces, its weights change sign here.

Names of axes in this package: T time, *batch any number of batch axes (or none), D in_features, H features, G·H the
gates of a cell side by side, 3H those of a GRU in the order r, z, n.
"""

from gru_jax.cells.affine import Projected, lifted, product, project, split
from gru_jax.cells.base import Cell, CellBase, State
from gru_jax.cells.block import BlockGRU, BlockParams
from gru_jax.cells.cfn import CFN
from gru_jax.cells.diagonal import DiagonalGRU, DiagonalParams
from gru_jax.cells.elman import Elman, Leaky, LeakyParams
from gru_jax.cells.gru import CHO2014, CUDNN, GOODFELLOW, GRU
from gru_jax.cells.layer_norm import BA2016, DREAMER, LayerNormGRU, LayerNormParams
from gru_jax.cells.ligru import LiGRU
from gru_jax.cells.lstm import LSTM, LSTMState
from gru_jax.cells.mgu import MGU
from gru_jax.cells.mingru import MinGRU, MinGRUParams
from gru_jax.cells.mut import MUT1, MUT2, MUT3
from gru_jax.cells.packed import PackedCell, Params
from gru_jax.cells.refine import RefineGRU
from gru_jax.cells.ugrnn import UGRNN

__all__ = [
    "BA2016",
    "CFN",
    "CHO2014",
    "CUDNN",
    "DREAMER",
    "GOODFELLOW",
    "GRU",
    "LSTM",
    "MGU",
    "MUT1",
    "MUT2",
    "MUT3",
    "UGRNN",
    "BlockGRU",
    "BlockParams",
    "Cell",
    "CellBase",
    "DiagonalGRU",
    "DiagonalParams",
    "Elman",
    "LSTMState",
    "LayerNormGRU",
    "LayerNormParams",
    "Leaky",
    "LeakyParams",
    "LiGRU",
    "MinGRU",
    "MinGRUParams",
    "PackedCell",
    "Params",
    "Projected",
    "RefineGRU",
    "State",
    "lifted",
    "product",
    "project",
    "split",
]
