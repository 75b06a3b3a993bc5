"""The parameters of any cell in a Flax module: how they are drawn, and the path of each leaf."""

import functools
import inspect
from collections.abc import Mapping
from typing import Any

import jax

from gru_jax import initializers

Path = tuple[str, ...]


def init_params(
    cell: Any, key: jax.Array, in_features: int, features: int, dtype: Any, options: Mapping[str, Any] | None
) -> Any:
    """Fresh parameters of a cell, whose floating-point leaves are in `dtype`.

    Args:
      cell: the equations.
      key: a PRNG key.
      in_features, features: widths of input and state.
      dtype: of the parameters. It is passed to a `cell.init` that takes a dtype.
      options: keywords for `cell.init`, none if None.

    Raises:
      TypeError: if an initializer among the options returns a box, e.g. one of `with_partitioning`.

    >>> import gru_jax
    >>> from flax import linen as nn
    >>> boxed = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    >>> options = {"kernel_init": boxed}
    >>> init_params(gru_jax.cells.LSTM(), jax.random.key(0), 3, 4, "float32", options)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    TypeError: init_options['kernel_init'] must return an array, got a Partitioned: ...
    """
    keywords = {name: _without_boxes(name, value) for name, value in (options or {}).items()}
    accepted = inspect.signature(cell.init).parameters
    if "dtype" in accepted or any(p.kind is p.VAR_KEYWORD for p in accepted.values()):
        keywords.setdefault("dtype", dtype)
    return initializers.cast_floating(cell.init(key, in_features, features, **keywords), dtype)


def _without_boxes(name: str, option: Any) -> Any:
    """An option of `cell.init`. If it is an initializer, its results are checked.

    A cell packs what several calls of an initializer return, so metadata for a single one of them has no place.
    """
    if not callable(option):
        return option

    @functools.wraps(option)
    def checked(*args: Any, **keywords: Any) -> Any:
        made = option(*args, **keywords)
        # flax.linen.Partitioned and its like; flax.nnx.VariableMetadata.
        if hasattr(made, "replace_boxed") or hasattr(made, "raw_value"):
            raise TypeError(
                f"init_options[{name!r}] must return an array, got a {type(made).__name__}: a layer of any cell has no "
                "with_partitioning or with_metadata. gru_jax's GRU and GRUCell do, and jax.device_put or "
                "jax.lax.with_sharding_constraint places the parameters of any layer"
            )
        return made

    return checked


def check_init_options(options: Any) -> None:
    """Checks that `options` are keywords, or None."""
    if options is not None and not (isinstance(options, Mapping) and all(isinstance(key, str) for key in options)):
        raise TypeError(f"init_options must be a dict of keywords for cell.init, or None, got {options!r:.100}")


def leaves_by_path(params: Any) -> dict[Path, Any]:
    """The leaves of parameters by path. A path is a tuple of keys, field names and indices, as text.

    Raises:
      ValueError: if two leaves have the same path, e.g. in a dict with the keys 0 and "0".

    >>> leaves_by_path({"W": 1, "heads": (2, 3)})
    {('W',): 1, ('heads', '0'): 2, ('heads', '1'): 3}
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    paths = {tuple(jax.tree_util.keystr((key,), simple=True) for key in path) or ("params",): x for path, x in leaves}
    if len(paths) < len(leaves):
        raise ValueError(f"the parameters of a cell must have names of their own, got {[path for path, _ in leaves]}")
    return paths


def params_from_paths(name: str, leaves: Mapping[Path, Any], like: Any, shapes: bool) -> Any:
    """Parameters with the structure of `like`, from leaves by path. Errors call them `name`.

    Raises:
      ValueError: if a leaf is missing or not known, or, with `shapes`, has another shape than in `like`; names the
        leaf.
    """
    expected = leaves_by_path(like)
    for path in expected.keys() ^ leaves.keys():
        verb = "have" if path in expected else "not have"
        raise ValueError(f"{name} must {verb} {'/'.join(path)}, got {['/'.join(map(str, p)) for p in leaves]}")
    for path, leaf in expected.items():
        got = getattr(leaves[path], "shape", type(leaves[path]).__name__)
        if shapes and got != leaf.shape:
            raise ValueError(f"{name}/{'/'.join(path)} must have shape {leaf.shape}, got {got}")
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[path] for path in expected])
