"""Kernels cast once for inference: the same bits, and never those of before."""

import keras
import numpy as np
import pytest

import keras_mae
from keras_mae.models.mixins import FusedInference


@pytest.fixture(
    params=[0, pytest.param(10**12, marks=pytest.mark.nightly)], ids=["fused", "plain"]
)
def minimum(request, monkeypatch):
    monkeypatch.setattr("keras_mae.ops.fusion._MIN_PARAMETERS", request.param)


def shuffle_weights(model):
    for variable in model.weights:
        if "float" in variable.dtype:
            noise = keras.random.normal(variable.shape, stddev=0.05)
            variable.assign(variable + noise)


def without_copies(model, images):
    """Returns what `predict` gives where each call casts the kernels."""
    clone = model.__class__.from_config(model.get_config())
    clone.set_weights(model.get_weights())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FusedInference, "_cast_once", lambda self: None)
        return clone.predict(images, batch_size=2, verbose=0)


def test_predict_has_the_same_bits_and_follows_the_weights(minimum):
    model = keras_mae.MAEEncoder.from_preset(
        "mae_tiny", depth=1, dtype="mixed_bfloat16"
    )
    images = np.random.default_rng(0).random((4, 32, 32, 3), "float32")
    for _ in range(2):
        shuffle_weights(model)
        wanted = without_copies(model, images)
        got = model.predict(images, batch_size=2, verbose=0)
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(model.predict_on_batch(images[:2]), wanted[:2])


@pytest.mark.nightly
def test_replaced_kernels_have_no_copies(minimum):
    model = keras_mae.MAEEncoder.from_preset(
        "mae_tiny", depth=1, dtype="mixed_bfloat16"
    )
    images = np.random.default_rng(0).random((4, 32, 32, 3), "float32")
    model.predict(images, batch_size=2, verbose=0)
    model.quantize("int8")
    wanted = without_copies(model, images)
    got = model.predict(images, batch_size=2, verbose=0)
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.slow
def test_evaluation_follows_the_training(make_model, images, minimum):
    model = make_model(dtype="mixed_bfloat16")
    model.compile(optimizer=keras.optimizers.SGD(0.1), jit_compile=False)
    losses = model.fit(
        images, batch_size=4, epochs=2, validation_data=images, verbose=0
    ).history["val_loss"]
    assert losses[0] != losses[1]
    again = make_model(dtype="mixed_bfloat16")
    again.set_weights(model.get_weights())
    again.compile(jit_compile=False)
    np.testing.assert_array_equal(again.evaluate(images, verbose=0), losses[1])


def test_float32_models_have_no_copies():
    model = keras_mae.MAEEncoder.from_preset("mae_tiny", depth=1)
    model.predict(np.zeros((1, 32, 32, 3), "float32"), verbose=0)
    assert model._cast_kernels is None


@pytest.mark.slow
def test_kernels_that_are_gone_are_not_kept():
    model = keras_mae.MAEEncoder.from_preset(
        "mae_tiny", depth=1, dtype="mixed_bfloat16"
    )
    images = np.zeros((1, 32, 32, 3), "float32")
    model.predict(images, verbose=0)
    assert len(model._cast_kernels._pairs) == 5
    model.quantize("int8")
    model.predict(images, verbose=0)
    assert not model._cast_kernels._pairs
