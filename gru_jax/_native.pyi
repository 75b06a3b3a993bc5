def handlers() -> dict[str, object]:
    """Name of an FFI target -> PyCapsule of its handler, as `jax.ffi.register_ffi_target` takes it."""

def isa() -> str:
    """The instruction set in use: avx512, avx2 or baseline.

    It is the best that the processor has, or the one that the environment variable GRU_JAX_NATIVE_ISA names; the first
    call of `isa` or `handlers` chooses. Both raise ValueError where the processor has not what the variable names.
    """
