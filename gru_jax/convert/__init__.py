"""Weights of trained GRUs from and to other frameworks and files: arrays in, arrays out, no framework imported."""

from gru_jax.convert.files import load as load
from gru_jax.convert.files import load_torch_safetensors as load_torch_safetensors
from gru_jax.convert.files import save as save
from gru_jax.convert.model import Model as Model
from gru_jax.convert.onnx_reader import from_onnx as from_onnx
from gru_jax.convert.onnx_writer import to_onnx as to_onnx
from gru_jax.convert.torch import from_torch as from_torch
from gru_jax.convert.torch import to_torch as to_torch
