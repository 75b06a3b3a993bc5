"""What a stack of layers may be told: options that `Stack` and the layers of nnx and linen have in common."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


# Not frozen, for a module of linen, which has these fields too, cannot inherit from a frozen dataclass.
@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Options:
    """Options of a stack of layers, by keyword.

    Attributes:
      num_layers: at least 1; each layer but the first takes the outputs of the one before.
      bidirectional: whether each layer also runs backwards; its outputs then are (..., 2·features), forward first.
      dropout: rate at which the outputs of each layer but the last are dropped, a fresh mask for every element.
      recurrent_dropout: rate at which the state is dropped where it enters the recurrent products; one mask per
        sequence, layer and direction (Gal & Ghahramani, NeurIPS 2016). For cells whose `step` takes a
        `recurrent_dropout_mask`.
      zoneout: rate at which units keep their old state; one mask per step, sequence, unit, layer and direction, and its
        expectation where nothing is random (Krueger et al., ICLR 2017). A number, or for a state of several parts a
        NamedTuple or tuple of numbers like it.
      time_major: whether inputs, outputs, mask and resets have time as their first axis instead of behind the batch.
      dtype: of the computation; the promotion of inputs and parameters if None. The state stays in float32 where it is
        narrower.
      method: how to run over time, see `gru_jax.unroll`.
      reverse: whether each layer runs backwards only; its outputs stay beside its inputs.
    """

    num_layers: int = 1
    bidirectional: bool = False
    dropout: float = 0.0
    recurrent_dropout: float = 0.0
    zoneout: Any = 0.0
    time_major: bool = False
    dtype: Any = None
    method: str = "auto"
    reverse: bool = False


OPTION_NAMES = tuple(field.name for field in dataclasses.fields(Options))


def options_of(value: Any) -> dict[str, Any]:
    """The options that an object has as attributes, by name."""
    return {name: getattr(value, name) for name in OPTION_NAMES}


def with_signature(*others: inspect.Parameter) -> Callable[[F], F]:
    """A decorator that shows the fields of `Options`, and others, in place of ``**options`` in a signature."""
    kind = inspect.Parameter.KEYWORD_ONLY
    fields = dataclasses.fields(Options)
    shown = [*others, *(inspect.Parameter(f.name, kind, default=f.default, annotation=f.type) for f in fields)]

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        function.__signature__ = signature.replace(parameters=[*own, *shown])  # type: ignore[attr-defined]
        return function

    return decorate
