"""The options that `Stack` and the layers of nnx and linen have in common."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


# Not frozen: a linen module inherits these fields, and it cannot inherit from a frozen dataclass.
@dataclasses.dataclass(kw_only=True, unsafe_hash=True)
class Options:
    """Options of a stack of layers. They are keywords.

    Attributes:
      num_layers: at least 1. Each layer but the first takes the outputs of the one before.
      bidirectional: whether each layer also runs backwards. Its outputs are then (..., 2·features), forward first.
      dropout: rate at which the outputs of each layer but the last are dropped, each element by itself.
      recurrent_dropout: rate at which the state is dropped where it enters the recurrent products, with one mask per
        sequence, layer and direction (Gal & Ghahramani, NeurIPS 2016). For cells whose `step` takes a
        `recurrent_dropout_mask`.
      zoneout: rate at which units keep their old state, with a mask per step, sequence, unit, layer and direction; if
        nothing is random, its expectation (Krueger et al., ICLR 2017). A number; or, for a state of several parts, a
        tuple or NamedTuple of numbers in its form.
      time_major: whether time is the first axis of inputs, outputs, mask and resets. Otherwise it follows the batch.
      dtype: of the computation; the promotion of inputs and parameters if None. The state is in float32 if that is
        wider.
      method: how to run over time, see `gru_jax.unroll`.
      reverse: whether each layer runs backwards only. Its outputs stay beside its inputs.
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
    """The options by name, from the attributes of an object."""
    return {name: getattr(value, name) for name in OPTION_NAMES}


def with_signature(*others: inspect.Parameter) -> Callable[[F], F]:
    """A decorator that replaces ``**options`` in a signature by `others` and the fields of `Options`."""
    kind = inspect.Parameter.KEYWORD_ONLY
    fields = dataclasses.fields(Options)
    keywords = [*others, *(inspect.Parameter(f.name, kind, default=f.default, annotation=f.type) for f in fields)]

    def decorate(function: F) -> F:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        function.__signature__ = signature.replace(parameters=[*own, *keywords])  # type: ignore[attr-defined]
        return function

    return decorate
