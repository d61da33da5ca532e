"""The moving average of weights: its numbers, its precision, and where it is used."""

import importlib.util

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_mae
from keras_mae.callbacks.checkpoints import (
    Checkpoints,
    list_checkpoints,
    restore_checkpoint,
)
from keras_mae.callbacks.validation import Validation
from keras_mae.optimizers import averaged_weights
from tests.optimizers.test_layer_decay import FIT, assert_same_summary, run
from tests.parity.timm_import import import_timm

pytestmark = pytest.mark.backends


def weights(model):
    return [keras.ops.convert_to_numpy(v).copy() for v in model.trainable_variables]


def averages(model):
    return [
        keras.ops.convert_to_numpy(v).copy()
        for v in model.optimizer._model_variables_moving_average
    ]


def compiled(make_model, ema=0.9, **options):
    model = make_model(depth=1)
    optimizer = keras_mae.pretraining_optimizer(1e-2, ema=ema)
    model.compile(optimizer=optimizer, **options)
    return model


@pytest.mark.parametrize("parts", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_the_average_is_that_of_the_updates(make_model, images, parts):
    model = compiled(make_model, 0.7, accumulation_steps=parts)
    wanted = None
    # the fifth update forgets 0.7, not the 0.71 of the warm-up
    for update in range(7):
        model.train_on_batch(images)
        decay = min(0.7, 1 - (1 + update) ** (-2 / 3))
        new = [np.float64(value) for value in weights(model)]
        pairs = zip(wanted or new, new, strict=True)
        wanted = [decay * old + (1 - decay) * value for old, value in pairs]
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 7
    for mine, average in zip(averages(model), wanted, strict=True):
        np.testing.assert_allclose(mine, average, rtol=0, atol=2e-6)
        assert mine.dtype == "float32"
    assert np.abs(wanted[0] - new[0]).max() > 1e-3  # a copy would pass, else


def test_the_warmup_is_timms():
    torch = pytest.importorskip("torch")
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    timm = import_timm()
    theirs = timm.utils.ModelEmaV3(torch.nn.Linear(1, 1), 0.99, use_warmup=True)
    optimizer = keras_mae.pretraining_optimizer(1e-3, ema=0.99)
    for update in (0, 1, 2, 10, 900, 1000, 100_000):
        optimizer.iterations.assign(update)
        # timm counts an update before it averages
        wanted = 1 - theirs.get_decay(update + 1)
        assert float(optimizer.newest_share()) == pytest.approx(wanted, rel=1e-5)


def test_keras_own_average_has_no_warmup():
    optimizer = keras_mae.optimizers.MatrixDecayAdamW(
        1e-2, use_ema=True, ema_momentum=0.9
    )
    assert not optimizer.get_config()["ema_warmup"]
    for update, share in [(0, 1.0), (1, 0.1), (9, 0.1)]:
        optimizer.iterations.assign(update)
        assert float(optimizer.newest_share()) == pytest.approx(share)


@pytest.mark.slow
def test_the_average_of_bfloat16_is_float32(make_model, images):
    model = make_model(depth=1, dtype="bfloat16")
    model.compile(optimizer=keras_mae.pretraining_optimizer(1e-2, ema=0.999))
    model.fit(images, batch_size=2, epochs=2, verbose=0)
    for average, weight in zip(averages(model), model.trainable_variables, strict=True):
        assert average.dtype == "float32" and weight.dtype == "bfloat16"
        # which fit leaves in the model, as Keras does
        rounded = keras.ops.convert_to_numpy(keras.ops.cast(average, "bfloat16"))
        np.testing.assert_array_equal(
            np.float32(keras.ops.convert_to_numpy(weight)), np.float32(rounded)
        )


@pytest.mark.slow
def test_averages_are_lent_to_the_model(make_model, images):
    model = compiled(make_model)
    before = weights(model)
    with averaged_weights(model):  # there are none yet
        np.testing.assert_array_equal(weights(model)[0], before[0])
    for _ in range(3):
        model.train_on_batch(images)
    own, lent = weights(model), averages(model)
    with pytest.raises(KeyError), averaged_weights(model):
        for value, average in zip(weights(model), lent, strict=True):
            np.testing.assert_array_equal(value, average)
        raise KeyError
    for value, mine in zip(weights(model), own, strict=True):
        np.testing.assert_array_equal(value, mine)
    for value, average in zip(averages(model), lent, strict=True):
        np.testing.assert_array_equal(value, average)


@pytest.mark.slow
def test_validation_evaluates_the_averages_and_gives_the_weights_back(
    make_model, images
):
    model = compiled(make_model)
    for _ in range(3):
        model.train_on_batch(images)
    batches = tf.data.Dataset.from_tensors(images).repeat()
    validation, logs, own = Validation(batches, steps=1), {}, weights(model)
    validation.set_model(model)
    validation.on_epoch_end(0, logs)
    with averaged_weights(model):
        wanted = model.evaluate(images, batch_size=len(images), verbose=0)
    assert logs["val_loss"] == pytest.approx(wanted, rel=1e-5)
    with_own = model.evaluate(images, batch_size=len(images), verbose=0)
    assert abs(with_own - wanted) > 1e-4 * wanted  # one of both alone is right
    np.testing.assert_array_equal(weights(model)[0], own[0])
    # a compiled step of JAX deletes the arrays that it is given, so none is shared
    model.train_on_batch(images)
    assert np.isfinite(averages(model)[0]).all()


@pytest.mark.parametrize("ema", [-0.1, 1.0])
def test_the_decay_is_checked(ema):
    with pytest.raises(ValueError, match=r"ema must be in \[0, 1\). Received: "):
        keras_mae.pretraining_optimizer(1e-3, ema=ema)


@pytest.mark.slow
def test_a_restored_average_goes_on_to_the_bit(make_model, images, tmp_path):
    """Checkpoints hold weights and averages; `model.keras` has the averages alone."""

    def fit(model, folder, **epochs):
        folder.mkdir(exist_ok=True)
        saving = Checkpoints(folder, folder / "model.keras", every_steps=1, keep=9)
        options = {"batch_size": 2, "verbose": 0, "shuffle": False}
        model.fit(images, callbacks=[saving], **options, **epochs)

    # two calls of fit, of which Keras's first would end with averages in the model
    whole = compiled(make_model)
    fit(whole, tmp_path / "whole", epochs=1)
    fit(whole, tmp_path / "whole", epochs=2, initial_epoch=1)
    restored = compiled(make_model)
    restore_checkpoint(restored, list_checkpoints(tmp_path / "whole")[2])
    fit(restored, tmp_path / "restored", epochs=2, initial_epoch=1)
    for read in (weights, averages):
        for wanted, got in zip(read(whole), read(restored), strict=True):
            np.testing.assert_array_equal(got, wanted)
    assert np.abs(weights(whole)[0] - averages(whole)[0]).max() > 1e-5
    saved = keras.models.load_model(tmp_path / "whole" / "model.keras")
    newest = keras.models.load_model(list_checkpoints(tmp_path / "whole")[4])
    for mine, wanted in zip(weights(saved), averages(whole), strict=True):
        np.testing.assert_array_equal(mine, wanted)
    for mine, wanted in zip(weights(newest), weights(whole), strict=True):
        np.testing.assert_array_equal(mine, wanted)


@pytest.mark.nightly
@pytest.mark.tensorflow
def test_replicas_average_as_one():
    """`fit` ends with the averages in the model."""
    averaging = """
def make_optimizer(make=make_optimizer):
    config = {**make().get_config(), "use_ema": True, "ema_momentum": 0.5}
    return FineTuningAdamW.from_config(config)
"""
    assert_same_summary(*run(averaging + FIT))
