"""A cell's step in three stages: what depends on parameters alone, on inputs besides, and on the state.

The first is done once, the second for all steps at once, and only the third within the loop over time. In it, products
of the state with weights are known: their values may be saved, and what a change of the weights adds to them is a
product over all steps.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal, mapped_aval

State = Any
Step = Callable[[Any, State, Any], State]
"""(params, state, x) to the next state."""

PARAMS, INPUTS, STATE = range(3)
INLINED = ("jit", "pjit", "closed_call", "core_call")


class Advanced(NamedTuple):
    """What `StagedStep.advance` returns.

    Attributes:
      state: the next state.
      products: of the state and weights, in the order in which they are taken.
      factors: what of the state each is a product of.
    """

    state: State
    products: list[jax.Array]
    factors: list[jax.Array]


class Product(NamedTuple):
    """A product within a step of what depends on the state with what depends on parameters alone.

    Attributes:
      equation: a `dot_general`.
      place: of the factor that depends on the state, 0 or 1.
    """

    equation: Any
    place: int

    @property
    def factor(self) -> Any:
        """The variable that depends on the state."""
        return self.equation.invars[self.place]

    @property
    def matrix(self) -> Any:
        """The variable that does not."""
        return self.equation.invars[1 - self.place]

    def of(self, factor: jax.Array, matrix: jax.Array) -> jax.Array:
        """Its value."""
        return bind(self.equation, [factor, matrix] if self.place == 0 else [matrix, factor])[0]

    def saved(self, value: jax.Array, factor: jax.Array, matrix: jax.Array) -> jax.Array:
        """Its value if it is known, with the derivatives of a product."""

        @jax.custom_jvp
        def known(value: jax.Array, factor: jax.Array, matrix: jax.Array) -> jax.Array:
            return value

        def rule(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
            return known(*primals), jax.jvp(self.of, primals[1:], tangents[1:])[1]

        known.defjvp(rule)
        return known(value, factor, matrix)


class StagedStep:
    """A step at given shapes, as three functions, each of which takes what those before it return.

    ::

        weights = staged.weights(params)
        inputs_t = staged.inputs(weights, x_t)
        state_t = staged.advance(weights, inputs_t, state_tm1).state

    Args:
      step: (params, state, x) to the next state.
      params: a pytree of arrays.
      state: a pytree of arrays.
      xs: a pytree of arrays that have a time axis in front.

    Raises:
      TypeError: if the next state differs from the state before in structure, shape or dtype.
    """

    def __init__(self, step: Step, params: Any, state: State, xs: Any) -> None:
        now = [jax.typeof(x) for x in jax.tree.leaves(xs)]
        types = [
            *map(jax.typeof, jax.tree.leaves((params, state))),
            *(mapped_aval(x.shape[0], 0, x) for x in now),
        ]
        structure = jax.tree.structure((params, state, xs))

        def flat(*leaves: Any) -> list[Any]:
            params, state, x = jax.tree.unflatten(structure, leaves)
            following = step(params, state, x)
            _check(following, state)
            return jax.tree.leaves(following)

        called = jax.make_jaxpr(flat)(*types)
        traced = jax.make_jaxpr(lambda *leaves: evaluate(called, leaves))(*types)
        self._state_structure = jax.tree.structure(state)
        self._known = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
        counts = [len(jax.tree.leaves(part)) for part in (params, state)]
        invars = traced.jaxpr.invars
        self._of_params, self._of_state = invars[: counts[0]], invars[counts[0] : sum(counts)]
        self._of_x = invars[sum(counts) :]
        self._outvars = traced.jaxpr.outvars
        self._sort(traced.jaxpr.eqns)

    def _sort(self, equations: Sequence[Any]) -> None:
        """Finds the stage of every equation, and what passes from one stage into another."""
        stage_of: dict[Any, int] = dict.fromkeys((*self._known, *self._of_params), PARAMS)
        stage_of |= dict.fromkeys(self._of_x, INPUTS) | dict.fromkeys(self._of_state, STATE)
        self._stages: tuple[list[Any], ...] = ([], [], [])
        self.products: list[Product] = []
        passed: tuple[dict[Any, None], ...] = ({}, {}, {})  # in the order in which they are needed
        beside_products: set[Any] = set()

        for equation in (*equations, None):
            read = [v for v in (equation.invars if equation else self._outvars) if not isinstance(v, Literal)]
            stage = max((stage_of[v] for v in read), default=PARAMS) if equation else STATE
            for v in read:
                if stage_of[v] < stage:
                    passed[stage_of[v]][v] = None
            if equation is None:
                beside_products.update(read)
                break
            self._stages[stage].append(equation)
            stage_of |= dict.fromkeys(equation.outvars, stage)
            stages = [PARAMS if isinstance(v, Literal) else stage_of[v] for v in equation.invars]
            if equation.primitive.name == "dot_general" and sorted(stages) == [PARAMS, STATE]:
                self.products.append(Product(equation, stages.index(STATE)))
            elif stage > PARAMS:
                beside_products.update(read)
        self._weights, self._inputs = list(passed[PARAMS]), list(passed[INPUTS])
        self.beside_products = [v in beside_products for v in self._weights]
        """Of each of the weights, whether it is used in anything but products with the state."""

    def weights(self, params: Any) -> list[jax.Array]:
        """What the other stages need that depends on parameters alone."""
        self_params = dict(zip(self._of_params, jax.tree.leaves(params), strict=True))
        return self._run(PARAMS, self_params, self._weights)

    def inputs(self, weights: list[jax.Array], x_t: Any) -> list[jax.Array]:
        """What the last stage needs that depends on an input, not on the state."""
        known = zip((*self._weights, *self._of_x), (*weights, *jax.tree.leaves(x_t)), strict=True)
        return self._run(INPUTS, dict(known), self._inputs)

    def advance(
        self,
        weights: list[jax.Array],
        inputs: list[jax.Array],
        state: State,
        *,
        matrices: list[jax.Array] | None = None,
        saved: list[jax.Array] | None = None,
        terms: list[Any] | None = None,
    ) -> Advanced:
        """The next state.

        Args:
          weights, inputs: of the stages before.
          state: the state before.
          matrices: weights for the products, if these are to be others.
          saved: the values of the products, if they are known.
          terms: what is to be added to each product, or None for nothing.
        """
        known = zip(
            (*self._weights, *self._inputs, *self._of_state),
            (*weights, *inputs, *jax.tree.leaves(state)),
            strict=True,
        )
        in_products = self._known | dict(zip(self._weights, weights if matrices is None else matrices, strict=True))
        products: list[jax.Array] = []
        factors: list[jax.Array] = []

        def times(product: Product, factor: jax.Array) -> jax.Array:
            k, matrix = len(products), in_products[product.matrix]
            value = product.of(factor, matrix) if saved is None else product.saved(saved[k], factor, matrix)
            products.append(value)
            factors.append(factor)
            return value if terms is None or terms[k] is None else value + terms[k]

        out = self._run(STATE, dict(known), self._outvars, times)
        return Advanced(jax.tree.unflatten(self._state_structure, out), products, factors)

    def terms(self, factors: list[jax.Array], d_weights: list[Any]) -> list[Any]:
        """What tangents of the weights add to the tangent of each product; None where there is no tangent."""
        tangents = dict(zip(self._weights, d_weights, strict=True))
        return [
            None if (d := tangents.get(product.matrix)) is None else product.of(factor, d)
            for product, factor in zip(self.products, factors, strict=True)
        ]

    def _run(
        self,
        stage: int,
        known: dict[Any, Any],
        wanted: Sequence[Any],
        times: Callable[[Product, jax.Array], jax.Array] | None = None,
    ) -> list[Any]:
        values = self._known | known
        products = {id(product.equation): product for product in self.products}
        for equation in self._stages[stage]:
            if times and (product := products.get(id(equation))):
                outs = [times(product, values[product.factor])]
            else:
                outs = bind(equation, [_read(values, v) for v in equation.invars])
            values.update(zip(equation.outvars, outs, strict=True))
        return [_read(values, v) for v in wanted]


def evaluate(called: Any, leaves: Sequence[Any]) -> list[Any]:
    """The results of a closed jaxpr; what it calls is inlined, compiled functions as well."""
    jaxpr = called.jaxpr
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*called.consts, *leaves), strict=True))
    for equation in jaxpr.eqns:
        given = [_read(values, v) for v in equation.invars]
        inner = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
        outs = evaluate(inner, given) if equation.primitive.name in INLINED else bind(equation, given)
        values.update(zip(equation.outvars, outs, strict=True))
    return [_read(values, v) for v in jaxpr.outvars]


def bind(equation: Any, values: list[Any]) -> list[Any]:
    """The results of an equation of a jaxpr."""
    primitive = equation.primitive
    with equation.ctx.manager:
        outs = primitive.bind(*values, **primitive.get_bind_params(equation.params))
    return list(outs) if primitive.multiple_results else [outs]


def _read(values: dict[Any, Any], v: Any) -> Any:
    return v.val if isinstance(v, Literal) else values[v]


def _check(following: State, state: State) -> None:
    like, got = (jax.tree.structure(tree) for tree in (state, following))
    if like != got:
        raise TypeError(f"step must return a state like the one it is given, {like}, got {got}")
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(following), strict=True):
        like, got = (jax.typeof(leaf).str_short() for leaf in (before, after))
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise TypeError(f"step must return a state like the one it is given, {like}, got {got}")
