"""`OccasionalCallbackList` calls what reads numbers every Nth update alone."""

import keras
import numpy as np
import pytest

from keras_mae.callbacks.callback_list import OccasionalCallbackList, hears_each_update
from keras_mae.callbacks.stopping import StopOnNonFiniteLoss


class Recorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.batches = []

    def on_train_batch_end(self, batch, logs=None):
        assert np.isfinite(logs["loss"])
        self.batches.append(batch + 1)


def make_model():
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse")
    return model


def test_first_last_and_every_third_update(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    model, recorder = make_model(), Recorder()
    callbacks = OccasionalCallbackList([recorder], model, every=3, steps=8, epochs=2)
    x, y = np.ones((8, 2)), np.ones((8, 1))
    history = model.fit(x, y, batch_size=1, epochs=2, verbose=0, callbacks=callbacks)
    assert recorder.batches == 2 * [1, 3, 6, 8]
    assert len(history.history["loss"]) == 2


def test_slow_updates_are_all_reported(monkeypatch):
    clock = iter(np.arange(100.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    model, recorder = make_model(), Recorder()
    callbacks = OccasionalCallbackList([recorder], model, every=3, steps=5, epochs=1)
    for batch in range(5):
        if not batch:
            callbacks.on_epoch_begin(0)
        callbacks.on_train_batch_end(batch, {"loss": 1.0})
    assert recorder.batches == [1, 2, 3, 4, 5]


def test_nan_is_found_between_two_calls(monkeypatch):
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    model = make_model()
    callbacks = OccasionalCallbackList(
        [StopOnNonFiniteLoss()], model, every=4, steps=8, epochs=1
    )
    x = np.ones((8, 2))
    x[5] = np.nan
    with pytest.raises(FloatingPointError, match="one of the steps 5 to 8"):
        model.fit(
            x,
            np.ones((8, 1)),
            batch_size=1,
            verbose=0,
            shuffle=False,
            callbacks=callbacks,
        )


def test_which_callbacks_need_each_update():
    assert hears_each_update(Recorder())
    assert hears_each_update(keras.callbacks.LambdaCallback(on_train_batch_end=print))
    assert not hears_each_update(keras.callbacks.LambdaCallback(on_epoch_end=print))
    assert not hears_each_update(keras.callbacks.EarlyStopping("loss"))
