"""A cell over time in the form of `flax.linen.RNN`."""

from typing import Any

import jax
from flax import linen as nn

from gru_jax import arguments, carries, checks, layers
from gru_jax.linen.cell import GRUCell


class RNN(nn.Module):
    """A `GRUCell` over time, in the place of `flax.linen.RNN`, also inside `nn.Bidirectional`.

    It has no parameters but the cell's, and these lie where Flax's lie: under `cell` if it is the outermost module or
    made in `setup`, and under the name of the cell, `GRUCell_0` if it was given none, in a module whose `@nn.compact`
    method makes both. So a checkpoint of a model in which `nn.RNN(nn.GRUCell(...))` became
    `gru_jax.linen.RNN(gru_jax.linen.GRUCell(...))` loads unchanged.

    It runs `gru_jax.unroll`, as `GRU` does; that has layers, directions and dropout of its own.

    Attributes:
      cell: the cell.
      time_major, return_carry: as in `GRU`.
      reverse, keep_order: whether to run backwards, and whether outputs then stay beside their inputs (True) or the
        last step comes first. Padding stays at the end.
      method: how to run over time, see `gru_jax.unroll`.

    Raises:
      TypeError: on construction, if the cell is not a `GRUCell`.

    >>> import jax.numpy as jnp
    >>> class Tagger(nn.Module):
    ...     @nn.compact
    ...     def __call__(self, inputs):
    ...         return nn.Dense(5)(RNN(GRUCell(4))(inputs))
    >>> variables = Tagger().init(jax.random.key(0), jnp.ones((2, 10, 3)))
    >>> sorted(variables["params"])
    ['Dense_0', 'GRUCell_0']
    """

    cell: GRUCell
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    method: str = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.cell, GRUCell):
            raise TypeError(f"cell must be a gru_jax.linen.GRUCell, got {type(self.cell).__name__}")
        super().__post_init__()

    def __call__(
        self,
        inputs: jax.Array,
        *,
        initial_carry: jax.Array | None = None,
        init_key: jax.Array | None = None,
        seq_lengths: jax.Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        mask: jax.Array | None = None,
        resets: jax.Array | None = None,
        reset_state: jax.Array | None = None,
    ) -> jax.Array | tuple[Any, jax.Array]:
        """Runs over whole sequences.

        Args:
          inputs: (*batch, time, in_features), or (time, *batch, in_features) if time_major.
          initial_carry: (*batch, features); from the cell's `initialize_carry` if None.
          init_key: the key for that, `jax.random.key(0)` if None.
          seq_lengths: (*batch,) integers in [0, time]; at and after a sequence's length outputs are 0.
          return_carry, time_major, reverse, keep_order: take the place of the attributes.
          mask, resets, reset_state: as `GRU` takes them.

        Returns:
          outputs (*batch, time, features), or with time first if time_major; or (carry, outputs) if return_carry.

        Raises:
          TypeError, ValueError: if a shape, a dtype, or a length that is known does not fit, or reset_state is missing
            beside resets and a carry_init of the cell other than zeros.
        """
        carries.check_reset_state(resets, reset_state, self.cell.carry_init)
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        inputs = arguments.inputs(inputs, None, time_major)
        batch = inputs.shape[1:-1] if time_major else inputs.shape[:-2]
        if initial_carry is None:
            key = jax.random.key(0) if init_key is None else init_key
            initial_carry = self.cell.initialize_carry(key, (*batch, inputs.shape[-1]))
        initial_carry = checks.array("initial_carry", initial_carry)
        cell, features = self.cell, initial_carry.shape[-1] if initial_carry.ndim else self.cell.features
        stack = layers.Stack(
            cell.equations, features, time_major=time_major, dtype=cell.dtype, method=self.method, reverse=reverse
        )
        params = cell.gru_params(inputs.shape[-1], features)
        outputs: Any
        carry, outputs = stack.run(
            [params],
            inputs,
            initial_carry=initial_carry,
            seq_lengths=seq_lengths,
            mask=mask,
            resets=resets,
            reset_state=reset_state,
        )
        if reverse and not (self.keep_order if keep_order is None else keep_order):
            outputs = nn.recurrent.flip_sequences(outputs, seq_lengths, len(batch), time_major)
        return (carry, outputs) if (self.return_carry if return_carry is None else return_carry) else outputs
