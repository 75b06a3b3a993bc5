"""jax.export: a GRU as StableHLO with symbolic sizes runs where there is no gru_jax."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from tests.cases import CELLS
from tests.models import inputs, model

pytestmark = pytest.mark.optimized

PROGRAM = """
import sys
sys.modules["gru_jax"] = None  # an import of it would fail
import jax, numpy as np
from jax import export
exported = export.deserialize(open("gru.stablehlo", "rb").read())
loss = exported.vjp()
for size in (0, 1):
    given = np.load(f"given{size}.npz")
    results = exported.call(given["xs"], given["lengths"])
    np.savez(f"results{size}.npz", *jax.tree.leaves(results))
    ones = [np.ones_like(leaf) for leaf in jax.tree.leaves(results)]
    np.savez(f"gradient{size}.npz", xs=loss.call(given["xs"], given["lengths"], *ones)[0])
assert sorted(name for name in sys.modules if name.startswith("gru_jax")) == ["gru_jax"]
assert sys.modules["gru_jax"] is None
"""


@pytest.mark.parametrize(
    ("cell", "options"),
    [
        ("cudnn", {"num_layers": 2, "bidirectional": True}),
        pytest.param("cho2014", {"reverse": True}, marks=pytest.mark.long),
    ],
)
def test_a_process_without_gru_jax_runs_it(tmp_path, cell, options):
    one = model(CELLS[cell], **options)

    @jax.jit
    def serve(xs, lengths):
        return one(xs, seq_lengths=lengths)

    batch, time = export.symbolic_shape("batch, time")
    like = jax.ShapeDtypeStruct((batch, time, 3), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
    (tmp_path / "gru.stablehlo").write_bytes(export.export(serve)(*like).serialize(vjp_order=1))
    given = [
        (inputs(batch=batch, time=time), np.arange(batch, dtype=np.int32) % (time + 1))
        for batch, time in ((4, 5), (1, 2))
    ]
    for i, (xs, lengths) in enumerate(given):
        np.savez(tmp_path / f"given{i}.npz", xs=xs, lengths=lengths)
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, check=True)
    for i, (xs, lengths) in enumerate(given):
        expected, pullback = jax.vjp(lambda xs, lengths=lengths: serve(xs, lengths), xs)
        results = np.load(tmp_path / f"results{i}.npz")
        for name, leaf in zip(results.files, jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(results[name], leaf, atol=1e-6)
        (gradient,) = pullback(jax.tree.map(jnp.ones_like, expected))
        np.testing.assert_allclose(np.load(tmp_path / f"gradient{i}.npz")["xs"], gradient, atol=1e-5)


def test_one_export_for_several_platforms():
    one = model(num_layers=2)
    like = jax.ShapeDtypeStruct((*export.symbolic_shape("batch, time"), 3), jnp.float32)
    exported = export.export(jax.jit(lambda xs: one(xs)[1]), platforms=("cpu", "cuda", "tpu"))(like)
    again = export.deserialize(exported.serialize())
    np.testing.assert_allclose(again.call(inputs()), one(inputs())[1], atol=1e-6)
    with pytest.raises(ValueError, match="Shape mismatch for args"):
        again.call(inputs(2))


def test_a_streaming_step_is_exported():
    one = model(num_layers=2)
    (batch,) = export.symbolic_shape("batch")
    state, x_t = (jax.ShapeDtypeStruct((batch, width), jnp.float32) for width in (4, 3))
    exported = export.export(jax.jit(lambda carry, x_t: one.stack.step(one.params, carry, x_t)))((state, state), x_t)
    again = export.deserialize(exported.serialize())
    carry = (jnp.zeros((4, 4), jnp.float32),) * 2
    for t in range(5):
        carry, output = again.call(carry, inputs()[:, t])
    expected, outputs = one(inputs())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), (*carry, output), (*expected, outputs[:, -1])
    )
