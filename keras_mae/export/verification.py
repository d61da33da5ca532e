"""Verifies that a SavedModel's outputs equal those of the Keras model."""

import contextlib
import math

import numpy as np
import tensorflow as tf

from keras_mae.data.tfrecord import image_example
from keras_mae.export.signatures import PACKED, PIXELS, ModelSignatures
from keras_mae.export.warmup import sample_inputs
from keras_mae.layers.adapted import is_quantized
from keras_mae.utils.typing import PathLike


def verify_savedmodel(path: PathLike, served: ModelSignatures) -> None:
    """Loads a SavedModel and compares its outputs with the Keras model's.

    Every signature is called with three images, of the model's size and of others, and
    with an empty batch.

    Args:
        path: Path of the SavedModel.
        served: What `build_signatures` returns for the Keras model.

    Raises:
        ValueError: If a signature is missing, or an output differs by more than
            rounding.

    Example:

    ```python
    from keras_mae.export import build_signatures, export_savedmodel

    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", depth=1)
    processor = keras_mae.MAEImageProcessor(image_size=32)
    export_savedmodel(encoder, processor, "models/mae/1")
    verify_savedmodel("models/mae/1", build_signatures(encoder, processor))
    ```
    """
    loaded = tf.saved_model.load(path)
    signatures = served.signatures()
    wanted = {"serving_default", *signatures}
    if set(loaded.signatures) != wanted:
        raise ValueError(
            f"{path} must have the signatures {', '.join(sorted(wanted))}. "
            f"Received: {', '.join(sorted(loaded.signatures))}"
        )
    # half types, and integers, round differently in a graph that fuses
    exact = served.model.compute_dtype == "float32" and not is_quantized(served.model)
    tolerance = 1e-4 if exact else 5e-2
    images = draw_images(served)
    pixels = tf.constant(served.processor(images))
    outputs, compared = {}, set()
    for name, signature in signatures.items():
        extra = sample_inputs(signature, len(images))
        del extra[signature.images.name]
        extra = {key: tf.constant(value) for key, value in extra.items()}
        if signature.function not in outputs:
            # eagerly, without a graph
            outputs[signature.function] = signature.function(pixels, **extra)
        expected = signature.finish(outputs[signature.function])
        request = _request(served, signature, images, pixels)
        inputs = {signature.images.name: request, **extra}
        function = loaded.signatures[name]
        # of what was seen already only the reading is new
        seen = (signature.function, signature.finish)
        with contextlib.nullcontext() if seen not in compared else _unoptimized():
            received = function(**inputs)
            _check_empty(name, function, signature, expected)
        compared.add(seen)
        if "class_ids" in received:
            scores = outputs[signature.function]["probabilities"]
            expected = _with_ties(served, scores, received, expected, tolerance)
        compare_outputs(name, received, expected, tolerance)


@contextlib.contextmanager
def _unoptimized():
    """Keeps TensorFlow from optimizing graphs before their first run: it takes long."""
    options = tf.config.optimizer.get_experimental_options()
    before = options.get("disable_meta_optimizer", False)
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": before})


def draw_images(served):
    """Draws images of the model's size and, if they are encoded, of other sizes."""
    height, width, channels = served.shape
    sizes = [(height, width)] * 3
    if served.takes_encoded_images:
        sizes[1:] = [(height + 7, 2 * width + 3), (height // 2 + 1, width // 3 + 1)]
        channels = 3  # of a grey model as well: the graph converts RGB to luma
    # a size may be larger than what the model's users may send
    sizes = [size for size in sizes if math.prod(size) <= served.max_pixels]
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, channels), "uint8") for size in sizes]


def _request(served, signature, images, pixels):
    """Converts images to a signature's input."""
    if signature.images.name == PIXELS:
        return pixels
    if signature.images.name == PACKED:
        levels = served.processor.to_uint8(pixels)
        return tf.constant([image.tobytes() for image in levels])
    encoded = [tf.io.encode_png(image).numpy() for image in images]
    if signature.images.name == "inputs":
        encoded = [image_example(content) for content in encoded]
    return tf.constant(encoded)


def compare_outputs(name, received, expected, tolerance):
    """Raises unless outputs are equal to within the tolerance."""
    if set(received) != set(expected):
        raise ValueError(
            f"The exported {name} must return {', '.join(sorted(expected))}. "
            f"Received: {', '.join(sorted(received))}"
        )
    for key, wanted in expected.items():
        got, wanted = np.asarray(received[key]), np.asarray(wanted)
        if key == "png_bytes":
            # rounding may move a grey level by one
            tolerance = max(tolerance, 1.5 / 255)
            got, wanted = map(_levels, (got, wanted))
        difference = _difference(got, wanted)
        if not difference <= tolerance:
            raise ValueError(
                f"The exported {name}: {key} must equal the model's to "
                f"{tolerance}. Received a difference of {difference:.2g}"
            )


def _levels(files):
    """Decodes PNG files of one size."""
    return np.stack([tf.io.decode_png(file).numpy() for file in files]) / 255


def _difference(received, wanted):
    """Returns the relative difference of floats; of other arrays 0 or 1."""
    if received.shape != wanted.shape:
        return np.inf
    if wanted.dtype.kind != "f":
        return float((received != wanted).any())
    scale = np.abs(wanted).max(initial=0) or 1.0
    return np.abs(received - wanted).max(initial=0) / scale


def _with_ties(served, scores, received, expected, tolerance):
    """Expects the received classes if they are as probable as the best ones."""
    # rounding may swap classes of almost equal probability
    ids = received["class_ids"]
    likely = tf.gather(scores, ids, batch_dims=1).numpy()  # (B, K)
    if _difference(likely, expected["probabilities"].numpy()) > tolerance:
        return expected
    return {**expected, "class_ids": ids, "labels": served.names_of(ids)}


def _check_empty(name, function, signature, expected):
    """Raises unless a signature takes an empty batch."""
    nothing = {
        spec.name: tf.zeros((0, *spec.shape[1:]), spec.dtype)
        for spec in signature.inputs
    }
    for key, value in function(**nothing).items():
        wanted = (0, *expected[key].shape[1:])
        if value.shape != wanted:
            raise ValueError(
                f"The SavedModel's {name}: {key} of an empty batch must be {wanted}. "
                f"Received: {tuple(value.shape)}"
            )
