"""What every layer promises: configs, dtypes, shapes, saving, errors."""

import keras
import numpy as np
import pytest

from keras_mae.layers import (
    MLP,
    PatchEmbedding,
    PositionEmbedding,
    SelfAttention,
    TransformerBlock,
)
from keras_mae.layers.transformer import gelu_tanh

# layer, its input's shape, its output's
LAYERS = {
    "positions": (lambda **k: PositionEmbedding(8, (2, 3), **k), (2, 7, 8), (2, 7, 8)),
    "patches": (
        lambda **k: PatchEmbedding(8, (2, 3), initializer_range=0.1, **k),
        (2, 6, 12),
        (2, 7, 8),
    ),
    "attention": (
        lambda **k: SelfAttention(8, 2, dropout_rate=0.1, use_bias=False, **k),
        (2, 5, 8),
        (2, 5, 8),
    ),
    "mlp": (lambda **k: MLP(8, 16, activation=gelu_tanh, **k), (2, 5, 8), (2, 5, 8)),
    "block": (
        lambda **k: TransformerBlock(
            8, 2, 16, "relu", 0.1, 0.2, False, 1e-12, "he_normal", **k
        ),
        (2, 5, 8),
        (2, 5, 8),
    ),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def case(request):
    return request.param


def first(outputs):
    return outputs[0] if isinstance(outputs, tuple) else outputs


def test_config_round_trip(case):
    layer = case[0](name="x", dtype="mixed_bfloat16")
    copy = type(layer).from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()


@pytest.mark.parametrize("policy", ["float32", "bfloat16", "mixed_bfloat16"])
def test_shapes_and_dtypes(case, policy):
    make, shape, wanted = case
    layer = make(dtype=policy)
    output = first(layer(np.ones(shape, "float32")))
    assert output.shape == wanted
    assert keras.backend.standardize_dtype(output.dtype) == layer.compute_dtype
    assert {w.dtype for w in layer.weights} == {layer.variable_dtype}


def test_save_and_load_keeps_the_answer(case, tmp_path):
    make, shape, _ = case
    inputs = keras.Input(shape[1:])
    model = keras.Model(inputs, first(make()(inputs)))
    model.save(tmp_path / "layer.keras")
    x = np.random.default_rng(0).standard_normal(shape).astype("float32")
    loaded = keras.models.load_model(tmp_path / "layer.keras")
    np.testing.assert_array_equal(loaded(x), model(x))


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
