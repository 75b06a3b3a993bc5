"""Why the native kernels are missing, and the warning about it."""

import functools
import importlib
import importlib.util
import warnings


def why(error: ImportError) -> str:
    """Why `gru_jax._native` cannot be imported. An installation that could not build it has recorded the reason.

    Args:
      error: what the import raised.
    """
    if importlib.util.find_spec("gru_jax._native") is not None:
        return f"built, but not to be loaded: {error}"
    try:
        return f"not built: {importlib.import_module('gru_jax._unbuilt').WHY}"
    except ImportError:
        return "not built: gru_jax was not installed, which compiles them"


@functools.cache
def warn(missing: str) -> None:
    """Warns, once in a process, that the kernels are missing, and says how to build them.

    Args:
      missing: the reason, as from `why`.
    """
    warnings.warn(
        "gru_jax runs without its native kernels for the CPU, with which this would be up to six times as fast; "
        f"{missing}. With a C++ compiler (apt install g++; on macOS xcode-select --install) this builds them: "
        "pip install --force-reinstall --no-deps --no-cache-dir gru_jax, or -e . in its checkout. To go without them "
        "and without this warning, set the environment variable GRU_JAX_NATIVE=0 or gru_jax.config.native = False.",
        stacklevel=2,
    )
