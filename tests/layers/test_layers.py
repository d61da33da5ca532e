"""Attention and position layers, beyond the contract (test_contract.py)."""

import sys
import types

import keras
import numpy as np
import pytest

from keras_mae.layers import PositionEmbedding, SelfAttention


def test_attention_rows_sum_to_one_and_dropout_needs_training():
    layer = SelfAttention(8, 2, dropout_rate=0.5)
    x = np.random.default_rng(0).standard_normal((1, 5, 8)).astype("float32")
    _, attention = layer(x)
    np.testing.assert_allclose(np.sum(attention, axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(layer(x)[0], layer(x)[0])
    dropped, _ = layer(x, training=True)
    assert np.abs(dropped - layer(x)[0]).max() > 0


@pytest.mark.backends
@pytest.mark.parametrize("first_query", [0, 2])
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("bfloat16", 0.05)])
def test_outputs_are_the_same_without_probabilities(first_query, dtype, tolerance):
    layer = SelfAttention(12, 3, dtype=dtype)
    x = np.random.default_rng(0).standard_normal((2, 5, 12)).astype("float32")
    wanted, probabilities = layer(x, first_query=first_query)
    got, none = layer(x, first_query=first_query, keep_attention=False)
    assert probabilities.shape == (2, 3, 5 - first_query, 5) and none is None
    got, wanted = (keras.ops.cast(value, "float32") for value in (got, wanted))
    got, wanted = map(keras.ops.convert_to_numpy, (got, wanted))
    np.testing.assert_allclose(got, wanted, atol=tolerance)


@pytest.mark.backends
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_compiles(dtype):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.attention = SelfAttention(8, 2, dtype=dtype)

        def call(self, x):
            return self.attention(x, keep_attention=False)[0]

    answer = Model().predict(np.ones((1, 5, 8), "float32"), verbose=0)
    assert np.isfinite(answer.astype("float32")).all()


def test_positions_are_not_trained():
    layer = PositionEmbedding(8, (2, 3))
    layer.build()
    assert layer.trainable_weights == []


@pytest.mark.parametrize("heads", [3, 0])
def test_heads_must_divide_the_width(heads):
    with pytest.raises(ValueError, match=f"hidden_dim=8, num_heads={heads}"):
        SelfAttention(8, heads)


# Keras 3.15's attention is causal on TPUs; JAX's of float16 fails in graphs on CPUs
@pytest.mark.parametrize(
    ("platform", "dtype", "fused"),
    [
        ("cpu", "float32", True),
        ("cpu", "float16", False),
        ("gpu", "float16", True),
        ("tpu", "bfloat16", False),
    ],
)
def test_where_jax_has_its_own_attention(platform, dtype, fused, monkeypatch):
    asked = []

    def attend(query, key, value):
        asked.append(query)
        return query

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    jax = types.SimpleNamespace(default_backend=lambda: platform)
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setattr(keras.ops, "dot_product_attention", attend)
    SelfAttention(8, 2, dtype=dtype)(np.zeros((1, 5, 8)), keep_attention=False)
    assert bool(asked) == fused
