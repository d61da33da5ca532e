"""Callbacks: pictures, TensorBoard, validation, write errors, non-finite loss."""

import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import keras_mae
from keras_mae import callbacks
from keras_mae.callbacks.checkpoints import Checkpoints


def fit(model, images, callback, epochs=1):
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    return model.fit(images, epochs=epochs, verbose=0, callbacks=[callback])


def read_events(folder):
    """Reads what TensorBoard would show: `(step, value)` by name."""
    found = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                content = tf.make_ndarray(value.tensor)
                found.setdefault(value.tag, []).append((event.step, content))
    return found


@pytest.mark.slow
def test_a_non_finite_loss_stops_before_the_checkpoint(make_model, images, tmp_path):
    images[0] = np.nan
    model = make_model()
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    saving = Checkpoints(tmp_path, tmp_path / "model.keras", every_steps=1)
    with pytest.raises(FloatingPointError, match="is nan at step 1"):
        model.fit(
            images, verbose=0, callbacks=[callbacks.StopOnNonFiniteLoss(), saving]
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_reconstructions_go_to_png_and_tensorboard(make_model, images, tmp_path):
    pytest.importorskip("tensorboard")
    processor = keras_mae.MAEImageProcessor(image_size=32)
    callback = callbacks.ReconstructionPictures(processor, images[:2], tmp_path, 2)
    fit(make_model(), images, callback, epochs=3)
    names = sorted(path.name for path in tmp_path.glob("*.png"))
    assert names == ["epoch-0002.png", "epoch-0003.png"]
    assert Image.open(tmp_path / names[0]).width == 4 * 160 + 12
    assert [step for step, _ in read_events(tmp_path)["reconstructions"]] == [1, 2]


def test_intervals_are_checked(images, tmp_path):
    processor = keras_mae.MAEImageProcessor(image_size=32)
    with pytest.raises(ValueError, match=r"every must be at least 1. Received: 0"):
        callbacks.ReconstructionPictures(processor, images, tmp_path, every=0)


@pytest.mark.nightly
def test_steps_of_one_execution_are_named_together(make_model, images):
    images[0] = np.nan
    model = make_model()
    model.compile(optimizer=keras.optimizers.AdamW(1e-3), steps_per_execution=2)
    dataset = tf.data.Dataset.from_tensor_slices(images).batch(2)
    with pytest.raises(FloatingPointError, match="at one of the steps 1 to 2"):
        model.fit(dataset, verbose=0, callbacks=[callbacks.StopOnNonFiniteLoss()])


def test_an_overflowing_float16_gradient_does_not_stop():
    """The optimizer leaves such a step out, and scales the next ones less."""
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD())
    callback = callbacks.StopOnNonFiniteLoss()
    callback.set_model(keras.Sequential())
    callback.model.optimizer = optimizer
    callback.on_train_batch_end(0, {"loss": 1.0, "gradient_norm": np.inf})
    with pytest.raises(FloatingPointError, match="the loss is inf"):
        callback.on_train_batch_end(0, {"loss": np.inf})
    callback.model.optimizer = optimizer.inner_optimizer
    with pytest.raises(FloatingPointError, match="the gradient_norm is inf"):
        callback.on_train_batch_end(0, {"loss": 1.0, "gradient_norm": np.inf})


def test_a_skipped_update_has_no_number_of_its_own():
    callback = callbacks.StopOnNonFiniteLoss()
    callback.set_model(keras.Sequential())
    callback.model.optimizer = keras.optimizers.SGD()
    callback.model.optimizer.iterations.assign(5)
    callback.on_train_begin()
    with pytest.raises(FloatingPointError, match="the loss is nan at step 5"):
        callback.on_train_batch_end(5, {"loss": np.nan})


def test_a_non_finite_validation_loss_stops_as_well():
    callback = callbacks.StopOnNonFiniteLoss()
    callback.set_model(keras.Sequential())
    callback.model.optimizer = keras.optimizers.SGD()
    with pytest.raises(FloatingPointError, match="the val_loss is nan"):
        callback.on_epoch_end(0, {"loss": 1.0, "val_loss": np.nan})


@pytest.mark.slow
def test_scalars_go_by_updates_and_have_every_epoch(make_model, images, tmp_path):
    model = make_model()
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    history = {}
    for first in (0, 2):  # the second fit goes on, as a resumed run does
        history = model.fit(
            *(images, None, 1),
            epochs=first + 2,
            initial_epoch=first,
            verbose=0,
            shuffle=False,
            validation_data=images,
            callbacks=[callbacks.TensorBoardScalars(tmp_path, every=3)],
        ).history
    train, held_out = (read_events(tmp_path / n) for n in ("train", "validation"))
    # every third update, and the last of each epoch of four
    steps = [3, 4, 6, 8, 9, 12, 12, 15, 16]
    assert [step for step, _ in train["loss"]] == steps
    assert [step for step, _ in held_out["loss"]] == [4, 8, 12, 16]
    assert train["loss"][-1][1] == pytest.approx(history["loss"][-1])
    assert held_out["loss"][-1][1] == pytest.approx(history["val_loss"][-1])
    assert "gradient_norm" in train
    with pytest.raises(ValueError, match=r"every must be at least 1. Received: 0"):
        callbacks.TensorBoardScalars(tmp_path, every=0)


def test_without_tensorboard_scalars_are_refused_at_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'keras-mae\[train\]'"):
        callbacks.TensorBoardScalars(tmp_path)


class FullDisk(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        raise OSError("no space left")


@pytest.mark.slow
def test_write_errors_do_not_end_training(make_model, images, capsys):
    history = fit(
        make_model(), images, callbacks.IgnoreWriteErrors(FullDisk()), epochs=2
    )
    assert len(history.history["loss"]) == 2
    assert capsys.readouterr().err == "FullDisk failed: no space left\n" * 2


@pytest.mark.slow
def test_every_hook_of_a_wrapped_callback_is_called(make_model, images, capsys):
    heard = []
    hooks = [name for name in dir(keras.callbacks.Callback) if name.startswith("on_")]
    wrapped = keras.callbacks.Callback()
    for name in hooks:
        setattr(wrapped, name, lambda *_, name=name, **__: heard.append(name))
    tolerant = callbacks.IgnoreWriteErrors(wrapped)
    model = make_model(depth=1)
    fit(model, images, tolerant)
    model.evaluate(images, verbose=0, callbacks=[tolerant])
    model.predict(images, verbose=0, callbacks=[tolerant])
    # what Keras calls by the default of another hook is that hook's
    assert set(heard) == {*hooks} - {"on_batch_begin", "on_batch_end"}
    assert wrapped.model is model and tolerant.model is model


def test_a_write_error_at_the_begin_of_an_epoch_is_printed(capsys):
    def fail(epoch, logs):
        raise OSError("no space left")

    wrapped = keras.callbacks.LambdaCallback(on_epoch_begin=fail)
    callbacks.IgnoreWriteErrors(wrapped).on_epoch_begin(0, {})
    assert capsys.readouterr().err == "LambdaCallback failed: no space left\n"


class StopAt(keras.callbacks.Callback):
    """Stops after the first update of an epoch."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.stop_training = True


@pytest.mark.backends
def test_validation_leaves_the_sums_of_a_stopped_epoch(make_model, images, tmp_path):
    """Else a run that goes on in that epoch would count validation as training."""
    model, folder = make_model(depth=1), tmp_path / "checkpoints"
    folder.mkdir()
    model.compile(optimizer=keras.optimizers.SGD(1e-3))
    batches = tf.data.Dataset.from_tensor_slices(images[::-1]).batch(2).repeat()
    history = model.fit(
        images,
        batch_size=2,
        shuffle=False,
        verbose=0,
        callbacks=[
            StopAt(),
            callbacks.Validation(batches, steps=2),
            Checkpoints(folder, tmp_path / "model.keras", steps_per_epoch=2),
        ],
    ).history
    assert history["val_loss"][0] != pytest.approx(history["loss"][0], rel=1e-4)
    saved = keras.models.load_model(tmp_path / "model.keras").running_metrics
    total, count = saved[:2]
    assert total / count == pytest.approx(history["loss"][0], rel=1e-5)


@pytest.mark.backends
def test_each_callback_works_with_any_fit(make_model, images, tmp_path):
    model = make_model(depth=1)
    batches = tf.data.Dataset.from_tensor_slices(images).batch(2).repeat()
    csv = keras.callbacks.CSVLogger(tmp_path / "history.csv")
    every = [
        callbacks.Validation(batches, steps=2),
        callbacks.StopOnNonFiniteLoss(),
        callbacks.Throughput(32, 1, flops_per_image=1e9, peak_flops=1e12),
        callbacks.TensorBoardScalars(tmp_path / "logs"),
        callbacks.IgnoreWriteErrors(csv),
        Checkpoints(tmp_path, tmp_path / "model.keras"),
    ]
    model.compile(optimizer=keras.optimizers.SGD(1e-3))
    logs = model.fit(images, verbose=0, callbacks=every).history
    assert logs["images_per_second"][0] > 0 and logs["val_loss"][0] > 0
    assert "images_per_second" in (tmp_path / "history.csv").read_text()


class CountedIterators:
    """A data set that counts who asks it for an iterator."""

    def __init__(self, dataset):
        self.dataset, self.count = dataset, 0

    def __iter__(self):
        self.count += 1
        return iter(self.dataset)


def test_validation_keeps_one_iterator_and_equals_evaluate(make_model, images):
    model = make_model()
    model.compile(optimizer=keras.optimizers.SGD(1e-3))
    batches = tf.data.Dataset.from_tensor_slices(images).batch(2).repeat()
    counted = CountedIterators(batches)
    callback = callbacks.Validation(counted, steps=2)
    callback.set_model(model)
    # another batch size: an image's place in the data set decides its mask
    wanted = model.evaluate(images, batch_size=4, verbose=0, return_dict=True)
    for epoch in range(3):
        logs = {"loss": 1.0}
        callback.on_epoch_end(epoch, logs)
        assert logs.pop("loss") == 1.0
        values = {f"val_{k}": v for k, v in wanted.items()}
        assert logs == pytest.approx(values, rel=1e-5)
    assert counted.count == 1


@pytest.mark.parametrize("kind", ["pretrainer", "classifier"])
def test_validation_keeps_one_iterator_under_a_strategy(make_model, images, kind):
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        model, arrays, loss = make_model(depth=1), (images,), None
        if kind == "classifier":
            model = keras_mae.MAEClassifier(model.encoder, num_classes=2)
            arrays = (images, np.array([0, 1, 0, 1]))
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer=keras.optimizers.SGD(1e-3), loss=loss)
    batches = tf.data.Dataset.from_tensor_slices(arrays if arrays[1:] else images)
    distributed = strategy.experimental_distribute_dataset(batches.batch(2).repeat())
    counted = CountedIterators(distributed)
    history = model.fit(
        *arrays,
        epochs=3,
        batch_size=4,
        verbose=0,
        callbacks=[callbacks.Validation(counted, steps=2)],
    ).history
    assert len(history["val_loss"]) == 3 and np.isfinite(history["val_loss"]).all()
    assert counted.count == 1


class FullWriter:
    """Stands for a writer of TensorBoard, on a full disk or of a lost worker."""

    def __init__(self, error):
        self.error = error(None, None, "{{node x}} logs/events; No space left\nmore")

    def flush(self):
        raise self.error

    close = flush


def test_a_full_disk_of_tensorboard_does_not_end_training(tmp_path, capsys):
    scalars = callbacks.TensorBoardScalars(tmp_path)
    scalars.set_model(types.SimpleNamespace(optimizer=keras.optimizers.SGD()))
    tolerant = callbacks.IgnoreWriteErrors(scalars)
    scalars._writers = {"train": FullWriter(tf.errors.ResourceExhaustedError)}
    tolerant.on_train_end()
    line = "TensorBoardScalars failed: logs/events; No space left\n"
    assert capsys.readouterr().err == line
    scalars._writers = {"train": FullWriter(tf.errors.UnavailableError)}
    with pytest.raises(tf.errors.UnavailableError):
        tolerant.on_train_end()
