"""Weights of trained GRUs from and to other frameworks and files: arrays in, arrays out, no framework imported."""

from gru_jax.convert.files import load as load
from gru_jax.convert.files import load_torch_safetensors as load_torch_safetensors
from gru_jax.convert.files import save as save
from gru_jax.convert.frameworks import from_equinox as from_equinox
from gru_jax.convert.frameworks import from_haiku as from_haiku
from gru_jax.convert.frameworks import from_linen as from_linen
from gru_jax.convert.frameworks import from_nnx as from_nnx
from gru_jax.convert.frameworks import to_equinox as to_equinox
from gru_jax.convert.frameworks import to_haiku as to_haiku
from gru_jax.convert.frameworks import to_linen as to_linen
from gru_jax.convert.frameworks import to_nnx as to_nnx
from gru_jax.convert.keras import from_keras as from_keras
from gru_jax.convert.keras import to_keras as to_keras
from gru_jax.convert.onnx_reader import from_onnx as from_onnx
from gru_jax.convert.onnx_writer import to_onnx as to_onnx
from gru_jax.convert.torch import from_torch as from_torch
from gru_jax.convert.torch import to_torch as to_torch
from gru_jax.models import Model as Model
