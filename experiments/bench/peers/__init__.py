"""The GRUs that are compared, with an adapter for each: all on the same weights and inputs, each in its own layout."""

import functools

from experiments.bench.peers import elsewhere, in_jax
from experiments.bench.peers.base import Pass, Peer, Problem, Program, UnavailableError, make_problem
from experiments.names import lookup

__all__ = ["PEERS", "REFERENCE", "Pass", "Peer", "Problem", "Program", "UnavailableError", "get", "make_problem"]

REFERENCE = "flax-nnx"

# "auto" is not among them, because it chooses one of the others.
PEERS: dict[str, Peer] = {
    f"gru_jax-{method}": Peer(functools.partial(in_jax.gru_jax_method, method)) for method in ("scan", "fused")
} | {
    "gru_jax-native": Peer(functools.partial(in_jax.gru_jax_method, "native"), in_jax.load_native),
    "flax-nnx": Peer(in_jax.flax_nnx, distributions=("flax",)),
    "flax-linen": Peer(in_jax.flax_linen, distributions=("flax",)),
    "haiku": Peer(in_jax.haiku, in_jax.load_haiku, distributions=("dm-haiku",), reset_after=False),
    "equinox": Peer(in_jax.equinox, in_jax.load_equinox, distributions=("equinox",)),
    "keras": Peer(in_jax.keras, in_jax.load_keras, distributions=("keras",)),
    "torch": Peer(elsewhere.torch, elsewhere.load_torch, distributions=("torch",)),
    "onnxruntime": Peer(elsewhere.onnxruntime, elsewhere.load_onnxruntime, distributions=("onnx", "onnxruntime")),
}


def get(name: str) -> Peer:
    """The peer of this name.

    Raises:
      ValueError: if there is none; the message suggests the nearest name.
    """
    return lookup("peer", PEERS, name)
