"""Copies of the nnx modules to which a function refers.

Only the trace in which a module was made may change it, and a change under a trace would leave tracers in it.
"""

import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any


def with_copies(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with copies, made in the current trace, of the modules and variables to which it refers.

    It refers to a module if it is the module or a method of it, closes over it, has it as a default or as an argument
    of `functools.partial`, or names it as a global; also within tuples, lists, dicts and other functions of its file.
    """
    return _copied(function, {}) if _holds(function, set()) else function


def _is_module(value: Any) -> bool:
    nnx = sys.modules.get("flax.nnx")  # if it has not been imported, there are no modules
    return nnx is not None and isinstance(value, nnx.Pytree | nnx.Variable)


def _holds(value: Any, seen: set[int]) -> bool:
    """Whether `value` is a module or refers to one. `seen` has the ids of values that were looked at before."""
    if id(value) in seen:
        return False
    seen.add(id(value))
    return _is_module(value) or any(_holds(part, seen) for part in _parts(value))


def _parts(value: Any) -> Iterator[Any]:
    match value:
        case types.FunctionType():
            yield from _globals(value).values()
            yield from (cell.cell_contents for cell in value.__closure__ or () if not _is_empty(cell))
            yield from (value.__defaults__, value.__kwdefaults__)
        case types.MethodType():
            yield from (value.__func__, value.__self__)
        case functools.partial():
            yield from (value.func, value.args, value.keywords)
        case dict():
            yield from value.values()
        case tuple() | list():
            yield from value


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """The globals that a function names; functions only if they are of the same file, since others are a library's."""

    def names(code: types.CodeType) -> Iterator[str]:
        yield from code.co_names
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                yield from names(constant)

    own = function.__globals__
    named = {name: own[name] for name in names(function.__code__) if name in own}
    return {name: x for name, x in named.items() if getattr(x, "__globals__", own) is own}


def _is_empty(cell: types.CellType) -> bool:
    """Whether a variable has no value yet."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return True
    return False


def _copied(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of `value` if it refers to modules, otherwise `value`. `memo` has the copies made before, by id."""
    if id(value) in memo:
        return memo[id(value)]
    if not _holds(value, set()):
        return value
    if isinstance(value, types.FunctionType):
        return _copied_function(value, memo)
    match value:
        case types.MethodType():
            new: Any = types.MethodType(_copied(value.__func__, memo), _copied(value.__self__, memo))
        case functools.partial():
            args, keywords = _copied(value.args, memo), _copied(value.keywords, memo)
            new = functools.partial(_copied(value.func, memo), *args, **keywords)
        case dict():
            new = {key: _copied(part, memo) for key, part in value.items()}
        case tuple() | list():
            parts = [_copied(part, memo) for part in value]
            new = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
        case _:
            new = sys.modules["flax.nnx"].clone(value)
    memo[id(value)] = new
    return new


def _copied_function(function: types.FunctionType, memo: dict[int, Any]) -> types.FunctionType:
    scope = dict(function.__globals__)
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    new = types.FunctionType(function.__code__, scope, function.__name__, None, cells)
    memo[id(function)] = new  # before its parts, which may refer to it
    scope.update((name, _copied(value, memo)) for name, value in _globals(function).items())
    for cell, old in zip(cells, function.__closure__ or (), strict=True):
        if not _is_empty(old):
            cell.cell_contents = _copied(old.cell_contents, memo)
    new.__defaults__ = _copied(function.__defaults__, memo)
    new.__kwdefaults__ = _copied(function.__kwdefaults__, memo)
    return new
