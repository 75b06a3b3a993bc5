"""The parameters of any cell in a module of Flax: how they are drawn, and the path of each leaf."""

import inspect
from collections.abc import Mapping
from typing import Any

import jax

from gru_jax import initializers

Path = tuple[str, ...]


def init_params(
    cell: Any, key: jax.Array, in_features: int, features: int, dtype: Any, options: Mapping[str, Any] | None
) -> Any:
    """Fresh parameters of a cell, those in floating point in `dtype`, which an `init` that takes a dtype is given.

    Args:
      cell: the equations.
      key: a PRNG key.
      in_features, features: widths of input and state.
      dtype: of the parameters.
      options: keywords for `cell.init`, none if None.
    """
    keywords = dict(options or {})
    if accepts_keyword(cell.init, "dtype"):
        keywords.setdefault("dtype", dtype)
    made = cell.init(key, in_features, features, **keywords)
    return initializers.cast_floating(made, dtype)


def accepts_keyword(function: Any, keyword: str) -> bool:
    """Whether a function has such a keyword, or takes any."""
    parameters = inspect.signature(function).parameters
    return keyword in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def check_init_options(options: Any) -> None:
    """Refuses anything but keywords, or None."""
    if options is not None and not (isinstance(options, Mapping) and all(isinstance(key, str) for key in options)):
        raise TypeError(f"init_options must be a dict of keywords for cell.init, or None, got {options!r:.100}")


def leaves_by_path(params: Any) -> dict[Path, Any]:
    """The leaves of parameters by their paths: keys, fields and places, as text.

    Raises:
      ValueError: if two leaves have the same path, as those of a dict with the keys 0 and "0".

    >>> leaves_by_path({"W": 1, "heads": (2, 3)})
    {('W',): 1, ('heads', '0'): 2, ('heads', '1'): 3}
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = {tuple(jax.tree_util.keystr((key,), simple=True) for key in path) or ("params",): x for path, x in leaves}
    if len(paths) < len(leaves):
        raise ValueError(f"the parameters of a cell must have names of their own, got {[path for path, _ in leaves]}")
    return paths


def params_from_paths(name: str, leaves: Mapping[Path, Any], like: Any, shapes: bool) -> Any:
    """Parameters like `like` of leaves by path; `name` is what an error calls them.

    Raises:
      ValueError: if a leaf is missing, there is one too many, or with `shapes` one has another shape; names it.
    """
    expected = leaves_by_path(like)
    for path in expected.keys() ^ leaves.keys():
        wanted = "have" if path in expected else "not have"
        raise ValueError(f"{name} must {wanted} {'/'.join(path)}, got {['/'.join(map(str, p)) for p in leaves]}")
    for path, leaf in expected.items():
        got = getattr(leaves[path], "shape", type(leaves[path]).__name__)
        if shapes and got != leaf.shape:
            raise ValueError(f"{name}/{'/'.join(path)} must have shape {leaf.shape}, got {got}")
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in expected])
