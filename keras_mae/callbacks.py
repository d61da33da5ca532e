"""Callbacks for pretraining: pictures, and stops on what must not go on."""

import math
import sys
from pathlib import Path

import keras
import numpy as np

from keras_mae.visualization import draw_reconstructions


def count_updates(model):
    """Counts the updates that a model has had.

    Args:
        model: A compiled Keras model.

    Returns:
        Int.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    model.compile(optimizer=keras.optimizers.SGD())
    assert count_updates(model) == 0
    ```
    """
    # not int(iterations), which a mirrored variable is not
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def _check_interval(every):
    if every < 1:
        raise ValueError(f"every must be at least 1. Received: {every}")
    return every


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Ends a run whose loss is no number, before such weights reach a checkpoint.

    Raises:
        FloatingPointError: Out of `fit`, with the step named.

    Example:

    ```python
    callback = StopOnNonFiniteLoss()
    ```
    """

    def on_train_batch_end(self, batch, logs=None):
        optimizer = getattr(self.model, "optimizer", None)
        # it finds its scale by trying: what overflows is left out, and tried smaller
        tries = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        for name, value in (logs or {}).items():
            value = float(np.mean(value))
            if not math.isfinite(value) and not (tries and name == "gradient_norm"):
                raise FloatingPointError(f"the {name} is {value} at {self._steps()}")

    def _steps(self):
        last = count_updates(self.model)
        several = getattr(self.model, "steps_per_execution", 1)
        if several == 1:
            return f"step {last}"
        return f"one of the steps {last - several + 1} to {last}"

    # the last step of an epoch shows in the validation loss alone
    on_epoch_end = on_train_batch_end


class Validation(keras.callbacks.Callback):
    """Evaluates the model after each epoch, on one iterator for all epochs.

    `fit(validation_data=...)` makes an iterator an epoch, and the end of one may wait
    many seconds for a thread of tf.data, most often under a distribution strategy. Put
    this before callbacks that read `val_` values.

    Args:
        batches: Endless data set, distributed or not, that begins anew after `steps`.
        steps: Int, batches of an evaluation.

    Example:

    ```python
    import tensorflow as tf

    images = np.zeros((8, 32, 32, 3), "float32")
    batches = tf.data.Dataset.from_tensor_slices(images).batch(4).repeat()
    callback = Validation(batches, steps=2)
    ```
    """

    def __init__(self, batches, steps):
        super().__init__()
        self.batches = batches
        self.steps = steps
        self._iterator = None

    def on_epoch_end(self, epoch, logs=None):
        model = self.model
        model.make_test_function()
        model.reset_metrics()
        if self._iterator is None:
            self._iterator = iter(self.batches)
        for _ in range(0, self.steps, model.steps_per_execution):
            results = model.test_function(self._iterator)
        # of all replicas together, as `evaluate` reads them
        metrics = model.get_metrics_result()
        if set(metrics) == set(results):
            results = metrics
        logs.update({f"val_{k}": float(np.mean(v)) for k, v in results.items()})


class ReconstructionPictures(keras.callbacks.Callback):
    """Draws the same images, with the same masks, after every few epochs.

    Args:
        processor: The `MAEImageProcessor` that made `images`.
        images: `(B, H, W, C)` float array.
        folder: Path of an existing folder, for `epoch-0001.png` and so on; TensorBoard
            reads the same pictures from its event files there.
        every: Int, epochs between two pictures; the last epoch has one as well.
        seed: Int, the seed of the masks.

    Raises:
        ValueError: If `every` is less than 1 or there is no image.

    Example:

    ```python
    images = np.zeros((2, 32, 32, 3), "float32")
    processor = keras_mae.MAEImageProcessor(image_size=32)
    callback = ReconstructionPictures(processor, images, "run/pictures", every=10)
    ```
    """

    def __init__(self, processor, images, folder, every=1, seed=0):
        super().__init__()
        if not len(images):
            raise ValueError("A picture needs at least one image. Received: 0")
        self.processor = processor
        self.images = images
        self.folder = Path(folder)
        self.every = _check_interval(every)
        self.seed = seed

    def on_train_begin(self, logs=None):
        import tensorflow as tf

        self._writer = tf.summary.create_file_writer(str(self.folder))

    def on_epoch_end(self, epoch, logs=None):
        if (epoch + 1) % self.every and epoch + 1 != self.params["epochs"]:
            return
        import tensorflow as tf

        picture = draw_reconstructions(
            self.model, self.processor, self.images, seed=self.seed
        )
        picture.save(self.folder / f"epoch-{epoch + 1:04d}.png")
        with self._writer.as_default():
            tf.summary.image("reconstructions", np.asarray(picture)[None], step=epoch)
        self._writer.flush()

    def on_train_end(self, logs=None):
        self._writer.close()


class StopOnCorruptImages(keras.callbacks.Callback):
    """Ends a run whose data has more corrupt images than it may.

    Args:
        corrupt: The `keras_mae.data.CorruptImages` of the pipelines.

    Raises:
        ValueError: Out of `fit`, with their number and some of their names.

    Example:

    ```python
    corrupt = keras_mae.data.CorruptImages(limit=10)
    callback = StopOnCorruptImages(corrupt)
    ```
    """

    def __init__(self, corrupt):
        super().__init__()
        self.corrupt = corrupt

    def on_train_batch_end(self, batch, logs=None):
        self.corrupt.check()


class Curves(keras.callbacks.Callback):
    """Writes all that `fit` logs down for TensorBoard, by the number of the update.

    Keras's own callback counts from 0 again in each `fit`, which lays a resumed run
    over its beginning, and between its intervals keeps back the epochs' values, too.

    Args:
        folder: Path of an existing folder, for `train` and `validation`.
        every: Int, updates between two points; the end of an epoch is one as well.

    Raises:
        ValueError: If `every` is less than 1.

    Example:

    ```python
    callback = Curves("run/logs", every=50)
    ```
    """

    def __init__(self, folder, every=1):
        super().__init__()
        self.folder = Path(folder)
        self.every = _check_interval(every)

    def on_train_begin(self, logs=None):
        import tensorflow as tf

        self._writers = {
            name: tf.summary.create_file_writer(str(self.folder / name))
            for name in ("train", "validation")
        }
        self._written = count_updates(self.model)

    def on_train_batch_end(self, batch, logs=None):
        step = count_updates(self.model)
        # several updates may lie between two calls
        if step // self.every > self._written // self.every:
            self._write("train", logs, step)
            self._written = step

    def on_epoch_end(self, epoch, logs=None):
        step = count_updates(self.model)
        prefix = "val_"
        theirs = {k: v for k, v in (logs or {}).items() if k.startswith(prefix)}
        ours = {k: v for k, v in (logs or {}).items() if k not in theirs}
        self._write("train", {**ours, "epoch": epoch + 1}, step)
        theirs = {name.removeprefix(prefix): v for name, v in theirs.items()}
        self._write("validation", theirs, step)
        for writer in self._writers.values():
            writer.flush()

    def _write(self, name, values, step):
        import tensorflow as tf

        with self._writers[name].as_default():
            for key, value in (values or {}).items():
                tf.summary.scalar(key, float(np.mean(value)), step=step)

    def on_train_end(self, logs=None):
        for writer in self._writers.values():
            writer.close()


class Forgiving(keras.callbacks.Callback):
    """Lets a training go on where what another callback writes does not fit the disk.

    Args:
        callback: A callback whose `OSError` is worth a line, and not the training.

    Example:

    ```python
    callback = Forgiving(keras.callbacks.CSVLogger("history.csv"))
    ```
    """

    def __init__(self, callback):
        super().__init__()
        self.callback = callback

    def set_model(self, model):
        self.callback.set_model(model)

    def set_params(self, params):
        self.callback.set_params(params)

    def on_train_begin(self, logs=None):
        # what can't be written now is wrong from the start
        self.callback.on_train_begin(logs)

    def on_train_batch_end(self, batch, logs=None):
        self._try("on_train_batch_end", batch, logs)

    def on_epoch_end(self, epoch, logs=None):
        self._try("on_epoch_end", epoch, logs)

    def on_train_end(self, logs=None):
        self._try("on_train_end", logs)

    def _try(self, method, *arguments):
        try:
            getattr(self.callback, method)(*arguments)
        except OSError as error:
            name = type(self.callback).__name__
            print(f"{name} failed: {error}", file=sys.stderr, flush=True)
