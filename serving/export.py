"""Export an MAE as a SavedModel for TF Serving.

Run: python serving/export.py --model=run --out=models/mae --version=1

Writes the SavedModel `OUT/VERSION` with these signatures, `B` images each:

    serving_default, features   image_bytes (B,)          -> features (B, 1 + L, D)
    features_from_pixels        pixels (B, H, W, C)       -> features (B, 1 + L, D)
    reconstruct                 image_bytes, seed (B,)    -> reconstruction, mask, loss
    reconstruct_from_pixels     pixels, seed (B,)         -> reconstruction, mask, loss
    reconstruct_with_mask       image_bytes, mask (B, L)  -> reconstruction, mask, loss
    reconstruct_with_mask_from_pixels      the same from pixels

`image_bytes` are encoded pictures (PNG, JPEG, WebP, BMP of 8 bits or
more, GIF's first frame), `pixels` what
`MAEImageProcessor` returns. `reconstruction` is in grey levels 0 to 255, `mask` is 1
where a patch was removed, `loss` is one number an image.

It is written aside, loaded again, compared with the Keras model, and then renamed
into place: a failed export changes nothing.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import keras_mae  # before keras, which it imports without TensorFlow's chatter

# isort: split
import dataclasses
import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_mae import data, flags
from keras_mae.flags import flag
from keras_mae.layers import seeded_noise


@dataclasses.dataclass
class ExportConfig:
    """The flags of this script."""

    model: str = flag("folder of a pretraining run, with model.keras")
    out: str = flag("folder of the served model", "models/mae")
    version: int = flag("the SavedModel's number, a folder in --out", 1)
    overwrite: bool = flag("replace this version if it exists", False)


class ServedMAE:
    """The functions behind the signatures of a SavedModel.

    Args:
        model: A `MAEPretrainer`.
        processor: The `MAEImageProcessor` that its images went through.
    """

    def __init__(self, model, processor):
        self._model = model
        self._processor = processor
        encoder = model.encoder
        self._shape = (*encoder.image_size, encoder.num_channels)
        self.image_bytes = tf.TensorSpec((None,), tf.string, "image_bytes")
        self.pixels = tf.TensorSpec((None, *self._shape), tf.float32, "pixels")
        self.seed = tf.TensorSpec((None,), tf.int64, "seed")
        self.mask = tf.TensorSpec((None, encoder.num_patches), tf.float32, "mask")

    def signatures(self):
        """Returns a dict from signature name to concrete function."""
        table = {
            "features": (self.features, ()),
            "reconstruct": (self.reconstruct, (self.seed,)),
            "reconstruct_with_mask": (self.reconstruct_with_mask, (self.mask,)),
        }
        signatures = {
            f"{name}_from_pixels": tf.function(function).get_concrete_function(
                self.pixels, *specs
            )
            for name, (function, specs) in table.items()
        }
        if self._shape[-1] not in (1, 3):
            # encoded pictures are grey or RGB: such a model is asked by pixels
            return {"serving_default": signatures["features_from_pixels"], **signatures}
        for name, (function, specs) in table.items():
            signatures[name] = tf.function(
                self._from_bytes(function)
            ).get_concrete_function(self.image_bytes, *specs)
        return {"serving_default": signatures["features"], **signatures}

    def _from_bytes(self, function):
        def decode_and_call(image_bytes, *rest):
            return function(self.decode(image_bytes), *rest)

        return decode_and_call

    def decode(self, image_bytes):
        """Decodes, resizes and normalizes as `MAEImageProcessor` does."""
        image_bytes = tf.ensure_shape(image_bytes, (None,))
        with tf.device("/cpu:0"):
            images = tf.map_fn(
                self._decode_one,
                image_bytes,
                fn_output_signature=tf.TensorSpec(self._shape, tf.float32),
            )
        return self._processor.normalize(images)  # (B, H, W, C)

    def _decode_one(self, encoded):
        # one frame, so that even a GIF has three dimensions
        image = tf.io.decode_image(encoded, 3, expand_animations=False)
        if self._shape[-1] == 1:
            # ITU-R 601 luma in Pillow's fixed point
            luma = tf.linalg.matvec(tf.cast(image, tf.int32), [19595, 38470, 7471])
            image = ((luma + 32768) // 65536)[..., None]  # (H, W, 1)
        return data.resize(image, self._shape[:2], self._processor.resample)

    def features(self, pixels):
        """Encodes every patch; the answer never changes from call to call."""
        pixels = tf.ensure_shape(pixels, (None, *self._shape))
        return {"features": tf.cast(self._model.encoder(pixels), tf.float32)}

    def reconstruct(self, pixels, seed):
        """Removes the model's share of patches, by each image's own seed."""
        seed = tf.ensure_shape(seed, (None,))
        fits = tf.equal(seed, tf.cast(tf.cast(seed, tf.int32), tf.int64))
        checks = [
            _demand(fits, "seed must fit into 32 bits"),
            _demand(tf.shape(seed) == tf.shape(pixels)[:1], "give a seed an image"),
        ]
        # each image is row 0 of its own seed, as in a call with that image alone
        with tf.control_dependencies(checks):
            pairs = tf.stack([seed, tf.zeros_like(seed)], axis=-1)  # (B, 2)
        noise = seeded_noise(pairs, tf.zeros_like(seed), self.mask.shape[1])
        return self._paint(pixels, noise=noise)

    def reconstruct_with_mask(self, pixels, mask):
        """Removes the patches that the caller names."""
        mask = tf.ensure_shape(mask, self.mask.shape)
        valid = tf.logical_or(tf.equal(mask, 0.0), tf.equal(mask, 1.0))
        removed = tf.reduce_sum(mask, axis=1)
        checks = [
            _demand(tf.shape(mask)[:1] == tf.shape(pixels)[:1], "give a mask an image"),
            _demand(valid, "mask must hold only 0 (visible) and 1 (removed)"),
            _demand(
                tf.equal(removed, removed[:1]),
                "every row of mask must keep equally many patches",
            ),
            _demand(removed > 0, "mask must remove at least one patch"),
            _demand(removed < self.mask.shape[1], "mask must keep at least one patch"),
        ]
        with tf.control_dependencies(checks):
            mask = tf.identity(mask)
        return self._paint(pixels, mask=mask)

    def _paint(self, pixels, **masking):
        pixels = tf.ensure_shape(pixels, (None, *self._shape))
        outputs = self._model.reconstruct(pixels, **masking)
        levels = self._processor.denormalize(outputs["reconstruction"])
        return {
            "reconstruction": tf.clip_by_value(levels, 0.0, 255.0),
            "mask": outputs["mask"],
            "loss": outputs["loss"],
        }


def _demand(condition, message):
    """Turns a condition into an operation that fails with INVALID_ARGUMENT."""
    return tf.debugging.Assert(tf.reduce_all(condition), [message])


def export(model, processor, path, overwrite=False):
    """Writes a SavedModel aside, checks it and renames it into place.

    A failure leaves `path` as it was. Replacing a version takes two renames; a kill
    between them leaves the older one beside it, as `old-part-...`.

    Args:
        model: A `MAEPretrainer`.
        processor: The `MAEImageProcessor` that its images went through.
        path: Path of the version folder.
        overwrite: Whether an existing version is replaced.

    Raises:
        ValueError: If the version exists and `overwrite` is false, or the SavedModel
            answers otherwise than the model.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise ValueError(f"{path} exists already: give --overwrite or another version")
    path.parent.mkdir(parents=True, exist_ok=True)
    # not a number, or a server would pick up the half-written folder
    aside = Path(tempfile.mkdtemp(prefix=f"part-{path.name}-", dir=path.parent))
    try:
        aside.chmod(0o755)  # mkdtemp's 0700 would shut a server's user out
        served = ServedMAE(model, processor)
        # a bare module: a Keras model would bring its own functions and weights along
        module = tf.Module()
        module.weights = [weight.value for weight in model.weights]
        tf.saved_model.save(module, aside, signatures=served.signatures())
        verify(aside, model, processor)
        _move_into_place(aside, path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _move_into_place(aside, path):
    """Renames a folder to `path`, and what was there out of its way."""
    if not path.exists():
        os.rename(aside, path)
        return
    old = aside.with_name(f"old-{aside.name}")
    os.rename(path, old)
    try:
        os.rename(aside, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old)


def verify(path, model, processor):
    """Loads a SavedModel and compares its answers with the Keras model's.

    Args:
        path: Path of the SavedModel.
        model: The `MAEPretrainer` it came from.
        processor: The `MAEImageProcessor` that its images went through.

    Raises:
        ValueError: If an answer differs by more than rounding.
    """
    signatures = tf.saved_model.load(path).signatures
    shape = (3, *model.encoder.image_size, model.encoder.num_channels)
    levels = np.random.default_rng(0).integers(0, 256, shape, dtype="uint8")
    pixels = tf.constant(processor.normalize(levels))
    mask = np.zeros((3, model.encoder.num_patches), "float32")
    mask[:, ::2] = 1.0
    extras = {
        "features": {},
        "reconstruct": {"seed": tf.constant([0, 1, 2], tf.int64)},
        "reconstruct_with_mask": {"mask": tf.constant(mask)},
    }
    inputs = {"_from_pixels": {"pixels": pixels}}
    if "features" in signatures:
        encoded = tf.stack([tf.io.encode_png(image) for image in levels])
        inputs[""] = {"image_bytes": encoded}
    served = ServedMAE(model, processor)
    for name, extra in extras.items():
        # eagerly, without a graph: what the Keras model says
        wanted = getattr(served, name)(pixels, **extra)
        for suffix, images in inputs.items():
            got = signatures[name + suffix](**images, **extra)
            for key, value in wanted.items():
                _compare(f"{name}{suffix}: {key}", got[key], value, model.compute_dtype)


def _compare(name, got, wanted, dtype):
    # half types round differently in a graph that fuses
    tolerance = 1e-4 if dtype == "float32" else 5e-2
    scale = np.abs(wanted).max() or 1.0
    difference = np.abs(got - wanted).max() / scale
    if not difference <= tolerance:
        raise ValueError(
            f"The SavedModel's {name} must equal the model's to {tolerance}. "
            f"Received a difference of {difference:.2g}"
        )


def load_run(folder):
    """Loads the model and the image processor of a pretraining run.

    Args:
        folder: Path of the run.

    Returns:
        A tuple `(MAEPretrainer, MAEImageProcessor)`.

    Raises:
        ValueError: If the folder lacks one of them, or a file can't be read.
    """
    path = Path(folder, "model.keras")
    if not path.is_file():
        raise ValueError(f"--model must be the folder of a run. {path} does not exist")
    processor = keras_mae.MAEImageProcessor.from_pretrained(folder)
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # a broken archive fails in many ways
        raise ValueError(f"{path} is no readable model: {error}") from error
    return model, processor


def main(config):
    """Exports a run."""
    if config.version < 1:
        raise ValueError(f"version must be at least 1. Received: {config.version}")
    path = Path(config.out, str(config.version))
    model, processor = load_run(config.model)
    export(model, processor, path, config.overwrite)
    size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    print(f"The SavedModel lies in {path} ({size / 1e6:.1f} MB)")


if __name__ == "__main__":
    flags.run_script(main, ExportConfig, __doc__.splitlines()[0])
