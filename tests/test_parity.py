"""The same weights in other frameworks: outputs, final states and gradients, in float64."""

import os

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gru_jax
from tests.cases import BATCH, FEATURES, IN_FEATURES, STEPS, problem

TOLERANCE = dict(atol=1e-12, rtol=1e-12)


def gates(packed):
    return np.split(np.asarray(packed), 3, axis=-1)


def torch_layer(torch, params):
    """torch.nn.GRU with our weights; its second bias of r and z, which adds nothing, is zero."""
    layer = torch.nn.GRU(IN_FEATURES, FEATURES, dtype=torch.float64)
    zero = np.zeros(2 * FEATURES)
    weights = {
        "weight_ih_l0": params.kernel.T,
        "weight_hh_l0": params.recurrent_kernel.T,
        "bias_ih_l0": params.bias,
        "bias_hh_l0": np.concatenate([zero, params.recurrent_bias]),
    }
    layer.load_state_dict({name: torch.tensor(np.array(value)) for name, value in weights.items()})
    return layer


@pytest.mark.parametrize("lengths", [None, (STEPS, 4, 1)], ids=["full", "lengths"])
def test_torch(lengths):
    torch = pytest.importorskip("torch")
    p = problem(gru_jax.CUDNN)
    layer = torch_layer(torch, p.params)
    xs = torch.tensor(np.asarray(p.xs), requires_grad=True)
    h_0 = torch.tensor(np.asarray(p.h_0))[None].requires_grad_()
    if lengths is None:
        hs, h_last = layer(xs, h_0)
    else:
        packed = torch.nn.utils.rnn.pack_padded_sequence(xs, torch.tensor(lengths))
        packed, h_last = layer(packed, h_0)
        hs, _ = torch.nn.utils.rnn.pad_packed_sequence(packed)
    (hs.sin().sum() + (h_last**3).sum()).backward()

    def loss(params, xs, h_0):
        options = {} if lengths is None else {"lengths": jnp.array(lengths)}
        h_last, hs = gru_jax.unroll(gru_jax.CUDNN, params, xs, h_0, **options)
        return jnp.sin(hs).sum() + (h_last**3).sum(), (h_last, hs)

    (d_params, *d_inputs), ours = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(*p[:3])
    theirs = (h_last[0].detach().numpy(), hs.detach().numpy())
    chex.assert_trees_all_close(ours, theirs, **TOLERANCE)
    chex.assert_trees_all_close(d_inputs, [xs.grad.numpy(), h_0.grad[0].numpy()], **TOLERANCE)
    gradients = {name: parameter.grad.numpy() for name, parameter in layer.named_parameters()}
    expected = gru_jax.Params(
        gradients["weight_ih_l0"].T,
        gradients["weight_hh_l0"].T,
        gradients["bias_ih_l0"],
        gradients["bias_hh_l0"][2 * FEATURES :],
    )
    chex.assert_trees_all_close(d_params, expected, **TOLERANCE)


@pytest.mark.parametrize("reset_after", [True, False])
def test_keras(reset_after):
    os.environ["KERAS_BACKEND"] = "jax"
    keras = pytest.importorskip("keras")
    keras.config.set_floatx("float64")
    cell = gru_jax.GRU(reset_after=reset_after)
    p = problem(cell)

    def in_keras_order(packed):
        r, z, n = gates(packed)
        return jnp.concatenate([z, r, n], axis=-1)

    # Keras' own tanh is of single precision on its JAX backend, even in float64.
    layer = keras.layers.GRU(
        FEATURES, jnp.tanh, reset_after=reset_after, return_sequences=True, return_state=True, dtype="float64"
    )
    layer.build((BATCH, STEPS, IN_FEATURES))
    bias = in_keras_order(p.params.bias)
    if reset_after:
        bias = jnp.stack([bias, jnp.concatenate([jnp.zeros(2 * FEATURES), p.params.recurrent_bias])])
    weights = [in_keras_order(p.params.kernel), in_keras_order(p.params.recurrent_kernel), bias]

    seeds = [variable.value for variable in layer.non_trainable_variables]

    def theirs(weights, xs, h_0):
        (hs, h_last), _ = layer.stateless_call(weights, seeds, xs.swapaxes(0, 1), initial_state=h_0)
        return h_last, hs.swapaxes(0, 1)

    def ours(params, xs, h_0):
        return gru_jax.unroll(cell, params, xs, h_0)

    def loss(run):
        def total(*args):
            h_last, hs = run(*args)
            return jnp.sin(hs).sum() + (h_last**3).sum(), (h_last, hs)

        return jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))

    (d_weights, *d_inputs), outputs = loss(theirs)(weights, *p[1:3])
    (d_params, *our_d_inputs), our_outputs = loss(ours)(*p[:3])
    chex.assert_trees_all_close(our_outputs, outputs, **TOLERANCE)
    chex.assert_trees_all_close(our_d_inputs, d_inputs, **TOLERANCE)
    chex.assert_trees_all_close(in_keras_order(d_params.kernel), d_weights[0], **TOLERANCE)
    chex.assert_trees_all_close(in_keras_order(d_params.recurrent_kernel), d_weights[1], **TOLERANCE)
