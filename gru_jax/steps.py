"""A cell's step in three stages: what depends on parameters only, what depends on inputs too, and on the state too.

The first stage is computed once, the second for all steps at once, and only the third within the loop over time. The
products of the state with weights in the third stage are found: so their values can be saved, and the terms that
tangents of the weights add to them are products over all steps.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import Literal, mapped_aval

from gru_jax import jaxprs
from gru_jax.cells.affine import can_merge_axes
from gru_jax.jaxprs import bind, evaluate, read, variables

State = Any
Step = Callable[[Any, State, Any], State]
"""(params, state, x) to the next state."""

PARAMS, INPUTS, STATE = range(3)


class StepResult(NamedTuple):
    """What `StagedStep.advance` returns.

    Attributes:
      state: the next state.
      products: the products of the state with weights, in the order of the step; addends are included.
      factors: for each product, the factor that depends on the state.
    """

    state: State
    products: list[jax.Array]
    factors: list[jax.Array]


class Product(NamedTuple):
    """A product within a step, of a factor that depends on the state and a matrix that depends on parameters only.

    Attributes:
      equation: a `dot_general`.
      place: the operand of it that depends on the state, 0 or 1.
      result: the variable of the product, or of its sum with the addend.
      addend: a variable of the inputs that is added to the product and used nowhere else; None if there is none.
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
        """The variable that does not depend on it."""
        return self.equation.invars[1 - self.place]

    def times(self, factor: jax.Array, matrix: jax.Array) -> jax.Array:
        """The product, without the addend."""
        return bind(self.equation, [factor, matrix] if self.place == 0 else [matrix, factor])[0]

    def value(self, factor: jax.Array, matrix: jax.Array, addend: jax.Array | None = None) -> jax.Array:
        """The product plus its addend."""
        product = self.times(factor, matrix)
        return product if addend is None else product + addend

    def saved(self, value: jax.Array, factor: jax.Array, matrix: jax.Array, addend: jax.Array | None) -> jax.Array:
        """The saved value, with its derivatives by factor, matrix and addend."""
        operands = (factor, matrix) if addend is None else (factor, matrix, addend)
        # A lambda, since the bound method would be hashed with the equation, which is not hashable.
        return jaxprs.precomputed(value, lambda *operands: self.value(*operands), *operands)


class StagedStep:
    """A step for operands of fixed shapes, as three functions, each of which takes the results of those before it.

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
        types_of_xs = [jax.typeof(x) for x in jax.tree.leaves(xs)]
        types = [
            *map(jax.typeof, jax.tree.leaves((params, state))),
            *(mapped_aval(x.shape[0], 0, x) for x in types_of_xs),
        ]
        structure = jax.tree.structure((params, state, xs))

        def flat_step(*leaves: Any) -> list[Any]:
            params, state, x = jax.tree.unflatten(structure, leaves)
            new = step(params, state, x)
            _check_state(new, state)
            return jax.tree.leaves(new)

        closed_jaxpr = jax.make_jaxpr(flat_step)(*types)
        traced = jax.make_jaxpr(lambda *leaves: evaluate(closed_jaxpr, leaves))(*types)
        self._state_structure = jax.tree.structure(state)
        self._consts = dict(zip(traced.jaxpr.constvars, traced.consts, strict=True))
        counts = [len(jax.tree.leaves(part)) for part in (params, state)]
        invars = traced.jaxpr.invars
        self._of_params, self._of_state = invars[: counts[0]], invars[counts[0] : sum(counts)]
        self._of_x = invars[sum(counts) :]
        self._outvars = traced.jaxpr.outvars
        self._sort(traced.jaxpr.eqns)

    def _sort(self, equations: Sequence[Any]) -> None:
        """Finds the stage of every equation, and the variables that pass from one stage to another."""
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
        # A dict, to keep the order.
        needed = dict.fromkeys(variables((*inputs, *state, *products)))
        self._weights = [v for v in needed if stage_of[v] == PARAMS]
        self._inputs = [v for v in dict.fromkeys(variables((*state, *products))) if stage_of[v] == INPUTS]
        beside = {*inputs, *state}
        self.beside_products = [v in beside for v in self._weights]
        """For each of the weights, whether it is used elsewhere than in products with the state."""
        addends = {product.addend for product in self.products}
        self.are_addends = [v in addends for v in self._inputs]
        """For each of the inputs, whether it is the addend of a product, and used nowhere else."""

    def weights(self, params: Any) -> list[jax.Array]:
        """The first stage: values that depend on parameters only."""
        return self._run(PARAMS, _named(self._of_params, jax.tree.leaves(params)), self._weights)

    def inputs(self, weights: list[jax.Array], xs: Any) -> list[jax.Array]:
        """The second stage: values at all steps that depend on inputs, but not on the state."""
        values = self._consts | _named(self._weights, weights)
        sequences = _named(self._of_x, jax.tree.leaves(xs))
        steps = next(iter(sequences.values())).shape[0]
        for equation in self._stages[INPUTS]:
            axes = [None if isinstance(v, Literal) or v not in sequences else 0 for v in equation.invars]
            operands = [
                read(values if axis is None else sequences, v) for v, axis in zip(equation.invars, axes, strict=True)
            ]
            if equation.primitive.name == "dot_general" and axes.count(0) == 1:
                place = axes.index(0)
                outs = [product_at_all_steps(equation, place, operands[place], operands[1 - place])]
            else:
                outs = jax.vmap(lambda *values, e=equation: bind(e, list(values)), axes, axis_size=steps)(*operands)
            sequences.update(zip(equation.outvars, outs, strict=True))
        return [sequences[v] for v in self._inputs]

    def advance(
        self,
        weights: list[jax.Array],
        inputs: list[jax.Array],
        state: State,
        *,
        matrices: list[jax.Array] | None = None,
        saved: list[jax.Array] | None = None,
        terms: list[Any] | None = None,
    ) -> StepResult:
        """The third stage: the next state.

        Args:
          weights, inputs: results of the first two stages.
          state: the state before.
          matrices: weights to be used in the products, if others than `weights`.
          saved: the values of the products, addends included, if they have been saved.
          terms: for each product a term to be added, or None.
        """
        values = _named(self._weights, weights) | _named(self._inputs, inputs)
        values |= _named(self._of_state, jax.tree.leaves(state))
        in_products = self._consts | _named(self._weights, weights if matrices is None else matrices)
        products: list[jax.Array] = []
        factors: list[jax.Array] = []

        def multiply(product: Product, factor: jax.Array) -> jax.Array:
            k, matrix = len(products), in_products[product.matrix]
            addend = None if product.addend is None else values[product.addend]
            operands = factor, matrix, addend
            value = product.value(*operands) if saved is None else product.saved(saved[k], *operands)
            products.append(value)
            factors.append(factor)
            return value if terms is None or terms[k] is None else value + terms[k]

        out = self._run(STATE, values, self._outvars, multiply)
        return StepResult(jax.tree.unflatten(self._state_structure, out), products, factors)

    def terms(self, factors: list[jax.Array], d_weights: list[Any], d_inputs: list[Any]) -> list[Any]:
        """For each product the term that tangents of its matrix and addend add to its tangent at all steps, or None."""
        tangents = _named(self._weights, d_weights) | _named(self._inputs, d_inputs)
        terms: list[Any] = []
        for product, factor in zip(self.products, factors, strict=True):
            d_matrix, d_addend = tangents.get(product.matrix), tangents.get(product.addend)
            parts = (
                [] if d_matrix is None else [product_at_all_steps(product.equation, product.place, factor, d_matrix)]
            )
            parts += [] if d_addend is None else [d_addend]
            terms.append(sum(parts[1:], start=parts[0]) if parts else None)
        return terms

    def _run(
        self,
        stage: int,
        values: dict[Any, Any],
        outvars: Sequence[Any],
        multiply: Callable[[Product, jax.Array], jax.Array] | None = None,
    ) -> list[Any]:
        """The values of `outvars` after a stage; `values` has its operands. `multiply` forms the products, if given."""
        values = self._consts | values
        products = {id(product.equation): product for product in self.products}
        for equation in self._stages[stage]:
            if multiply and (product := products.get(id(equation))):
                values[product.result] = multiply(product, values[product.factor])
            else:
                outs = bind(equation, [read(values, v) for v in equation.invars])
                values.update(zip(equation.outvars, outs, strict=True))
        return [read(values, v) for v in outvars]


def product_at_all_steps(equation: Any, place: int, factors: jax.Array, matrix: jax.Array) -> jax.Array:
    """The `dot_general` of one step for all steps at once: its operand `place` has a time axis in front.

    Time and batch are merged into one axis where no mesh can shard it: in the gradient of a matrix, XLA on a CPU
    contracts one axis up to twice as fast as two, which it first copies into another layout.
    """
    numbers = equation.params["dimension_numbers"]
    (contracted, batch), width = (numbers[0][place], numbers[1][place]), factors.ndim - 2
    if place == 1 or batch or tuple(contracted) != (width,) or not can_merge_axes():
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
    """The products of the third stage that have one factor of the state and one of the parameters."""
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
    """The product with its addend: an input that is added to it, if neither is used for anything else."""
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


def _check_state(new: State, state: State) -> None:
    """Checks that the next state has the structure, shapes and dtypes of the state before."""
    like: Any
    got: Any
    like, got = (jax.tree.structure(tree) for tree in (state, new))
    if like != got:
        raise TypeError(f"step must return a state like the one it is given, {like}, got {got}")
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(new), strict=True):
        like, got = (jax.typeof(leaf).str_short() for leaf in (before, after))
        if (before.shape, before.dtype) != (after.shape, after.dtype):
            raise TypeError(f"step must return a state like the one it is given, {like}, got {got}")
