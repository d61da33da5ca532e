"""Attention and position layers, beyond the contract (test_contract.py)."""

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


def test_positions_are_not_trained():
    layer = PositionEmbedding(8, (2, 3))
    layer.build()
    assert layer.trainable_weights == []


@pytest.mark.parametrize("heads", [3, 0])
def test_heads_must_divide_the_width(heads):
    with pytest.raises(ValueError, match=f"hidden_dim=8, num_heads={heads}"):
        SelfAttention(8, heads)
