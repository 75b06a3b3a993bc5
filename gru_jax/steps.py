"""A cell's step in three stages: what depends on parameters alone, on inputs besides, and on the state.

The first is done once, the second for all steps at once, and only the third within the loop over time. In it, products
of the state with weights are known: their values may be saved, and what a change of the weights adds to them is a
product over all steps.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal, mapped_aval

from gru_jax import jaxprs
from gru_jax.cells.affine import merges
from gru_jax.jaxprs import bind, evaluate, read, variables

State = Any
Step = Callable[[Any, State, Any], State]
"""(params, state, x) to the next state."""

PARAMS, INPUTS, STATE = range(3)


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
    """A product within a step of what depends on the state with what depends on parameters alone, and what is added.

    Attributes:
      equation: a `dot_general`.
      place: of the factor that depends on the state, 0 or 1.
      result: the variable that holds the product, or the sum.
      addend: the variable of the inputs that is added to the product and used nowhere else; None if there is none.
    """

    equation: Any
    place: int
    result: Any
    addend: Any = None

    @property
    def factor(self) -> Any:
        """The variable that depends on the state."""
        return self.equation.invars[self.place]

    @property
    def matrix(self) -> Any:
        """The variable that does not."""
        return self.equation.invars[1 - self.place]

    def times(self, factor: jax.Array, matrix: jax.Array) -> jax.Array:
        """The product alone."""
        return bind(self.equation, [factor, matrix] if self.place == 0 else [matrix, factor])[0]

    def at_all_steps(self, factors: jax.Array, matrix: jax.Array) -> jax.Array:
        """The products of factors that have a time axis in front."""
        return product_at_all_steps(self.equation, self.place, factors, matrix)

    def of(self, factor: jax.Array, matrix: jax.Array, addend: jax.Array | None = None) -> jax.Array:
        """The product, or the sum."""
        value = self.times(factor, matrix)
        return value if addend is None else value + addend

    def saved(self, value: jax.Array, factor: jax.Array, matrix: jax.Array, addend: jax.Array | None) -> jax.Array:
        """Its value if it is known, with the derivatives that it has."""
        operands = (factor, matrix) if addend is None else (factor, matrix, addend)
        # Not the method itself: it would be hashed by the equation, which cannot be.
        return jaxprs.known(value, lambda *given: self.of(*given), *operands)


class StagedStep:
    """A step at given shapes, as three functions, each of which takes what those before it return.

    ::

        weights = staged.weights(params)
        inputs = staged.inputs(weights, xs)                             at all steps
        state_t = staged.advance(weights, inputs_t, state_tm1).state    at one

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
        self._consts = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
        counts = [len(jax.tree.leaves(part)) for part in (params, state)]
        invars = traced.jaxpr.invars
        self._of_params, self._of_state = invars[: counts[0]], invars[counts[0] : sum(counts)]
        self._of_x = invars[sum(counts) :]
        self._outvars = traced.jaxpr.outvars
        self._sort(traced.jaxpr.eqns)

    def _sort(self, equations: Sequence[Any]) -> None:
        """Finds the stage of every equation, and what passes from one stage into another."""
        stage_of: dict[Any, int] = dict.fromkeys((*self._consts, *self._of_params), PARAMS)
        stage_of |= dict.fromkeys(self._of_x, INPUTS) | dict.fromkeys(self._of_state, STATE)
        stages: tuple[list[Any], ...] = ([], [], [])
        for equation in equations:
            stage = max((stage_of[v] for v in variables(equation.invars)), default=PARAMS)
            stages[stage].append(equation)
            stage_of |= dict.fromkeys(equation.outvars, stage)

        self.products = _products(stages[STATE], self._outvars, stage_of)
        sums = {product.result for product in self.products if product.addend is not None}
        self._stages = (*stages[:STATE], [e for e in stages[STATE] if sums.isdisjoint(e.outvars)])
        own = {id(product.equation) for product in self.products}
        products = [v for product in self.products for v in (product.matrix, product.addend) if v is not None]
        inputs, state = (
            [v for e in stage if id(e) not in own for v in variables(e.invars)] for stage in self._stages[INPUTS:]
        )
        state += variables(self._outvars)
        # In the order in which they are needed.
        needed = dict.fromkeys(variables((*inputs, *state, *products)))
        self._weights = [v for v in needed if stage_of[v] == PARAMS]
        self._inputs = [v for v in dict.fromkeys(variables((*state, *products))) if stage_of[v] == INPUTS]
        beside = {*inputs, *state}
        self.beside_products = [v in beside for v in self._weights]
        """Of each of the weights, whether it is used in anything but products with the state."""
        addends = {product.addend for product in self.products}
        self.are_addends = [v in addends for v in self._inputs]
        """Of each of the inputs, whether it is added to a product, and no more."""

    def weights(self, params: Any) -> list[jax.Array]:
        """What the other stages need that depends on parameters alone."""
        return self._run(PARAMS, _named(self._of_params, jax.tree.leaves(params)), self._weights)

    def inputs(self, weights: list[jax.Array], xs: Any) -> list[jax.Array]:
        """What the last stage needs at all steps that depends on inputs, not on the state."""
        values = self._consts | _named(self._weights, weights)
        timed = _named(self._of_x, jax.tree.leaves(xs))
        steps = next(iter(timed.values())).shape[0]
        for equation in self._stages[INPUTS]:
            axes = [None if isinstance(v, Literal) or v not in timed else 0 for v in equation.invars]
            given = [read(values if axis is None else timed, v) for v, axis in zip(equation.invars, axes, strict=True)]
            if equation.primitive.name == "dot_general" and axes.count(0) == 1:
                place = axes.index(0)
                outs = [product_at_all_steps(equation, place, given[place], given[1 - place])]
            else:
                outs = jax.vmap(lambda *given, e=equation: bind(e, list(given)), axes, axis_size=steps)(*given)
            timed.update(zip(equation.outvars, outs, strict=True))
        return [timed[v] for v in self._inputs]

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
          saved: the values of the products, what is added to them included, if they are known.
          terms: what is to be added to each product besides, or None for nothing.
        """
        known = _named(self._weights, weights) | _named(self._inputs, inputs)
        known |= _named(self._of_state, jax.tree.leaves(state))
        in_products = self._consts | _named(self._weights, weights if matrices is None else matrices)
        products: list[jax.Array] = []
        factors: list[jax.Array] = []

        def times(product: Product, factor: jax.Array) -> jax.Array:
            k, matrix = len(products), in_products[product.matrix]
            addend = None if product.addend is None else known[product.addend]
            operands = factor, matrix, addend
            value = product.of(*operands) if saved is None else product.saved(saved[k], *operands)
            products.append(value)
            factors.append(factor)
            return value if terms is None or terms[k] is None else value + terms[k]

        out = self._run(STATE, known, self._outvars, times)
        return Advanced(jax.tree.unflatten(self._state_structure, out), products, factors)

    def terms(self, factors: list[jax.Array], d_weights: list[Any], d_inputs: list[Any]) -> list[Any]:
        """What tangents of the weights, and of what is added, are in the tangent of each product, at all steps.

        None where they are nothing.
        """
        tangents = _named(self._weights, d_weights) | _named(self._inputs, d_inputs)
        terms: list[Any] = []
        for product, factor in zip(self.products, factors, strict=True):
            d_matrix, d_addend = tangents.get(product.matrix), tangents.get(product.addend)
            parts = [] if d_matrix is None else [product.at_all_steps(factor, d_matrix)]
            parts += [] if d_addend is None else [d_addend]
            terms.append(sum(parts[1:], start=parts[0]) if parts else None)
        return terms

    def _run(
        self,
        stage: int,
        known: dict[Any, Any],
        results: Sequence[Any],
        times: Callable[[Product, jax.Array], jax.Array] | None = None,
    ) -> list[Any]:
        values = self._consts | known
        products = {id(product.equation): product for product in self.products}
        for equation in self._stages[stage]:
            if times and (product := products.get(id(equation))):
                values[product.result] = times(product, values[product.factor])
            else:
                outs = bind(equation, [read(values, v) for v in equation.invars])
                values.update(zip(equation.outvars, outs, strict=True))
        return [read(values, v) for v in results]


def product_at_all_steps(equation: Any, place: int, factors: jax.Array, matrix: jax.Array) -> jax.Array:
    """A `dot_general` of one step, of factors that have a time axis in front, its operand `place`.

    Time and batch are one axis where that axis can be none of a mesh: in the gradient of a matrix, XLA on a CPU
    contracts one axis up to twice as fast as two, which it first copies into another layout.
    """
    numbers = equation.params["dimension_numbers"]
    (contracted, batch), width = (numbers[0][place], numbers[1][place]), factors.ndim - 2
    if place == 1 or batch or tuple(contracted) != (width,) or not merges():
        order = (lambda f, m: [f, m]) if place == 0 else (lambda f, m: [m, f])
        return jax.vmap(lambda factor: bind(equation, order(factor, matrix))[0])(factors)
    rows = factors.reshape(-1, factors.shape[-1])
    product = jax.lax.dot_general(
        rows,
        matrix,
        (((1,), numbers[0][1]), ((), ())),
        precision=equation.params["precision"],
        preferred_element_type=equation.params["preferred_element_type"],
    )
    return product.reshape(*factors.shape[:-1], *product.shape[1:])


def _products(equations: Sequence[Any], outvars: Sequence[Any], stage_of: dict[Any, int]) -> list[Product]:
    """The products in the last stage of what depends on the state with what depends on parameters alone."""
    readers: dict[Any, list[Any]] = {v: [None] for v in variables(outvars)}
    for equation in equations:
        for v in variables(equation.invars):
            readers.setdefault(v, []).append(equation)
    found = []
    for equation in equations:
        stages = [stage_of[v] for v in variables(equation.invars)]
        if equation.primitive.name == "dot_general" and sorted(stages) == [PARAMS, STATE]:
            product = Product(equation, stages.index(STATE), equation.outvars[0])
            found.append(_with_addend(product, readers, stage_of))
    return found


def _with_addend(product: Product, readers: dict[Any, list[Any]], stage_of: dict[Any, int]) -> Product:
    """The product and what of the inputs is added to it, if the sum is all that either is used for."""
    reading = readers.get(product.result, [])
    if len(reading) != 1 or reading[0] is None or reading[0].primitive.name not in ("add", "add_any"):
        return product
    (addition,) = reading
    one, other = addition.invars
    addend = other if one is product.result else one
    if isinstance(addend, Literal) or stage_of[addend] != INPUTS or len(readers[addend]) != 1:
        return product
    if addend.aval.shape != product.result.aval.shape or addend.aval.dtype != product.result.aval.dtype:
        return product
    return product._replace(result=addition.outvars[0], addend=addend)


def _named(names: Sequence[Any], values: Sequence[Any]) -> dict[Any, Any]:
    return dict(zip(names, values, strict=True))


def _check(following: State, state: State) -> None:
    like: Any
    got: Any
    like, got = (jax.tree.structure(tree) for tree in (state, following))
    if like != got:
        raise TypeError(f"step must return a state like the one it is given, {like}, got {got}")
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(following), strict=True):
        like, got = (jax.typeof(leaf).str_short() for leaf in (before, after))
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise TypeError(f"step must return a state like the one it is given, {like}, got {got}")
