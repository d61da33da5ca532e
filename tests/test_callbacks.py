"""Callbacks: whole checkpoints or none, pictures, a stop on non-finite loss."""

import keras
import numpy as np
import pytest
from PIL import Image

import keras_mae
from keras_mae import callbacks


def fit(model, images, callback, epochs=1):
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    return model.fit(images, epochs=epochs, verbose=0, callbacks=[callback])


def test_checkpoints_come_every_few_epochs_and_at_the_end(
    make_model, images, tmp_path, monkeypatch
):
    saved = []
    monkeypatch.setattr(
        callbacks, "save_atomically", lambda model, path: saved.append(path)
    )
    callback = callbacks.Checkpoint(tmp_path / "model.keras", every=2)
    fit(make_model(), images, callback, epochs=5)
    assert len(saved) == 3


def test_a_save_that_dies_leaves_the_old_file(make_model, images, tmp_path):
    path = tmp_path / "model.keras"
    model = make_model()
    callbacks.save_atomically(model, path)
    wanted = np.asarray(model.encoder(images))

    class Dying:
        def save(self, part):
            part.write_bytes(b"half a file")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        callbacks.save_atomically(Dying(), path)
    loaded = keras.models.load_model(path)
    np.testing.assert_array_equal(loaded.encoder(images), wanted)


def test_a_non_finite_loss_stops_before_the_checkpoint(make_model, images, tmp_path):
    images[0] = np.nan
    model = make_model()
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    checkpoint = callbacks.Checkpoint(tmp_path / "model.keras")
    with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
        model.fit(
            images, verbose=0, callbacks=[callbacks.StopOnNonFiniteLoss(), checkpoint]
        )
    assert not list(tmp_path.iterdir())


def test_pictures_are_drawn_for_people_and_for_tensorboard(
    make_model, images, tmp_path
):
    pytest.importorskip("tensorboard")
    processor = keras_mae.MAEImageProcessor(image_size=32)
    callback = callbacks.ReconstructionPictures(processor, images[:2], tmp_path, 2)
    fit(make_model(), images, callback, epochs=3)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == ["epoch-0002.png", "epoch-0003.png"]
    assert Image.open(tmp_path / names[0]).width == 4 * 160 + 12
    assert list(tmp_path.glob("events.out.tfevents.*"))


def test_logs_of_several_replicas_become_numbers():
    logs = {"loss": np.array([1.5], "float32"), "val_loss": 2}
    callbacks.UnwrapLogs().on_epoch_end(0, logs)
    assert logs == {"loss": 1.5, "val_loss": 2.0}


def test_intervals_are_checked():
    with pytest.raises(ValueError, match=r"every must be at least 1. Received: 0"):
        callbacks.Checkpoint("model.keras", every=0)


def test_a_non_finite_validation_loss_stops_as_well():
    callback = callbacks.StopOnNonFiniteLoss()
    callback.set_model(keras.Sequential())
    callback.model.optimizer = keras.optimizers.SGD()
    with pytest.raises(FloatingPointError, match="the val_loss is nan"):
        callback.on_epoch_end(0, {"loss": 1.0, "val_loss": np.nan})


def test_a_stopped_training_is_saved(make_model, images, tmp_path):
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    model = make_model()
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    checkpoint = callbacks.Checkpoint(tmp_path / "model.keras", every=5)
    model.fit(images, epochs=9, verbose=0, callbacks=[checkpoint, Stop()])
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert int(loaded.optimizer.iterations) == 1
