"""The LSTM, the minimal gated unit and the book's form of the GRU over whole sequences, beside Flax' cells."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import gru_jax
from experiments.bench import timing
from experiments.bench.measure import PASSES, TOLERANCE
from experiments.bench.peers.in_jax import put_into_flax
from experiments.bench.settings import Shape
from experiments.bench.timing import Timing

METHODS = ("auto", "scan", "fused")

Run = Callable[[Any, jax.Array], jax.Array]
"""(params, xs) to hs."""


class CellTime(NamedTuple):
    """The cost of a cell over a sequence.

    Attributes:
      shape: T, B, D and H.
      cell: "LSTM", "MGU" or "GOODFELLOW".
      which: of `PASSES`.
      name: "gru_jax-" and a method of `unroll`, a cell of Flax, or "CHO2014".
      timing: of a call.
      speedup: over the faster of Flax' cells, the median over rounds.
      difference: the largest difference from our plain scan, as a share of the largest value; None if equations differ.
      temporary_bytes: peak temporary memory by XLA's analysis.
    """

    shape: Shape
    cell: str
    which: str
    name: str
    timing: Timing
    speedup: float
    difference: float | None
    temporary_bytes: int

    @property
    def agrees(self) -> bool:
        """Whether the result is that of the scan, to rounding; True if the equations differ."""
        return self.difference is None or self.difference <= TOLERANCE


def run(shapes: Iterable[Shape], rounds: int, sample_seconds: float) -> Iterator[list[CellTime]]:
    """Times each cell by each method and Flax' cells, forward and gradient, in turn.

    Args:
      shapes: to time.
      rounds, sample_seconds: see `timing.interleave`.

    Yields:
      The rows of one shape, one cell and one pass.
    """
    for shape in shapes:
        for cell, peers in {"LSTM": _lstm(shape), "MGU": _mgu(shape), "GOODFELLOW": _goodfellow(shape)}.items():
            for which in PASSES:
                yield list(_rows(shape, cell, which, peers, rounds, sample_seconds))


def _rows(
    shape: Shape, cell: str, which: str, peers: Mapping[str, tuple[Run, Any]], rounds: int, sample_seconds: float
) -> Iterator[CellTime]:
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.standard_normal(shape[:3]), jnp.float32)
    g = jnp.asarray(rng.standard_normal((shape.T, shape.B, shape.H)), jnp.float32)
    compiled: dict[str, Any] = {}
    programs: dict[str, Callable[[], Any]] = {}
    for name, (unroll, params) in peers.items():
        arguments = jax.device_put((params, xs))
        gradient = jax.grad(lambda params, xs, f=unroll: (f(params, xs) * g).sum(), (0, 1))
        compiled[name] = jax.jit(gradient if which == "gradient" else unroll).lower(*arguments).compile()
        programs[name] = functools.partial(_call, compiled[name], arguments)
    expected = _compared(which, programs["gru_jax-scan"]())
    timings = timing.interleave(programs, rounds, sample_seconds)
    flax = min((name for name in timings if name.startswith("flax")), key=lambda name: timings[name].median)
    for name, taken in timings.items():
        got = _compared(which, programs[name]())
        comparable = cell == "LSTM" or name.startswith("gru_jax")
        yield CellTime(
            shape,
            cell,
            which,
            name,
            taken,
            timing.ratio(timings[flax], taken),
            float(abs(got - expected).max() / abs(expected).max()) if comparable else None,
            compiled[name].memory_analysis().temp_size_in_bytes,
        )


def _call(compiled: Any, arguments: tuple[Any, ...]) -> Any:
    return jax.block_until_ready(compiled(*arguments))


def _compared(which: str, result: Any) -> np.ndarray:
    """hs, or the gradient of the inputs."""
    return np.asarray(result[1] if which == "gradient" else result)


def _ours(cell: Any, params: Any) -> dict[str, tuple[Run, Any]]:
    def unrolled(method: str) -> Run:
        return lambda params, xs: gru_jax.unroll(cell, params, xs, method=method)[1]

    return {f"gru_jax-{method}": (unrolled(method), params) for method in METHODS}


def _over_time(step: Callable[[Any, Any, jax.Array], Any], carry: Any) -> Run:
    return lambda params, xs: jax.lax.scan(lambda carry, x: step(params, carry, x), carry, xs)[1]


def _lstm(shape: Shape) -> dict[str, tuple[Run, Any]]:
    """Our LSTM and both of Flax on the same weights; the first has a product for each gate, the second one for all."""
    from flax import nnx

    cell = gru_jax.cells.LSTM()
    weights = cell.init(jax.random.key(0), shape.D, shape.H)
    found = _ours(cell, weights)
    zero = jnp.zeros((shape.B, shape.H))
    for flax in (nnx.LSTMCell, nnx.OptimizedLSTMCell):
        parts: Any = nnx.split(flax(shape.D, shape.H, rngs=nnx.Rngs(0)), nnx.Param, ...)
        graph, params, rest = parts
        gates = ("i", "f", "g", "o") if flax is nnx.LSTMCell else ("dense",)
        split = [np.split(np.asarray(packed), len(gates), -1) for packed in weights[:3]]
        for gate, kernel, recurrent_kernel, bias in zip(gates, *split, strict=True):
            into, recurrent = ("dense_i", "dense_h") if gate == "dense" else (f"i{gate}", f"h{gate}")
            into = "if_" if into == "if" else into
            params[into]["kernel"].set_value(jnp.asarray(kernel))
            params[recurrent]["kernel"].set_value(jnp.asarray(recurrent_kernel))
            params[recurrent]["bias"].set_value(jnp.asarray(bias))

        def step(params: Any, carry: Any, x: jax.Array, graph: Any = graph, rest: Any = rest) -> Any:
            return nnx.merge(graph, params, rest)(carry, x)

        found[f"flax {flax.__name__}"] = (_over_time(step, (zero, zero)), params)
    return found


def _mgu(shape: Shape) -> dict[str, tuple[Run, Any]]:
    """Our MGU, which resets before the product, as in the paper; and that of Flax, which resets after it."""
    from flax import linen

    cell = gru_jax.cells.MGU()
    flax, zero = linen.MGUCell(shape.H), jnp.zeros((shape.B, shape.H))
    variables = flax.init(jax.random.key(0), zero, jnp.zeros((shape.B, shape.D)))
    ours = _ours(cell, cell.init(jax.random.key(0), shape.D, shape.H))
    return ours | {"flax MGUCell": (_over_time(flax.apply, zero), variables)}


def _goodfellow(shape: Shape) -> dict[str, tuple[Run, Any]]:
    """Beside `CHO2014`, which has a tanh for the candidate, and Flax' cell, which also resets after the product."""
    from flax import nnx

    weights = gru_jax.GOODFELLOW.init(jax.random.key(0), shape.D, shape.H)
    parts: Any = nnx.split(nnx.GRUCell(shape.D, shape.H, rngs=nnx.Rngs(0)), nnx.Param, ...)
    graph, params, rest = parts
    put_into_flax(params, weights)

    def step(params: Any, carry: Any, x: jax.Array) -> Any:
        return nnx.merge(graph, params, rest)(carry, x)

    others = {
        "CHO2014": _ours(gru_jax.CHO2014, weights)["gru_jax-auto"],
        "flax GRUCell": (_over_time(step, jnp.zeros((shape.B, shape.H))), params),
    }
    return _ours(gru_jax.GOODFELLOW, weights) | others
