"""Whether a SavedModel answers as the Keras model it came from."""

import numpy as np
import tensorflow as tf

from keras_mae.export.images import serialize_example
from keras_mae.export.warmup import sample_inputs


def verify(path, served):
    """Loads a SavedModel and compares its answers with the Keras model's.

    Every signature is asked about three images, of the model's size and of others, and
    about none.

    Args:
        path: Path of the SavedModel.
        served: The `Served` it was written from.

    Raises:
        ValueError: If a signature is missing, or an answer differs by more than
            rounding.

    Example:

    ```python
    from keras_mae.export import export, serve

    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny", depth=1)
    processor = keras_mae.MAEImageProcessor(image_size=32)
    export(encoder, processor, "models/mae/1")
    verify("models/mae/1", serve(encoder, processor))
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
    # half types round differently in a graph that fuses
    tolerance = 1e-4 if served.model.compute_dtype == "float32" else 5e-2
    images = _images(served)
    pixels = tf.constant(served.processor(images))
    answers = {}
    for name, signature in signatures.items():
        extra = sample_inputs(signature, len(images))
        del extra[signature.images.name]
        extra = {key: tf.constant(value) for key, value in extra.items()}
        if signature.function not in answers:
            # eagerly, without a graph: what the Keras model says, of bytes and pixels
            answers[signature.function] = signature.function(pixels, **extra)
        expected = answers[signature.function]
        asked = {signature.images.name: _request(signature, images, pixels), **extra}
        received = loaded.signatures[name](**asked)
        if "class_ids" in received:
            expected = _with_ties(served, pixels, received, expected, tolerance)
        _compare(name, received, expected, tolerance)
        _check_empty(name, loaded.signatures[name], signature, expected)


def _images(served):
    """Draws images of the model's size, and for pictures also of other sizes."""
    height, width, channels = served.shape
    sizes = [(height, width)] * 3
    if served.takes_pictures:
        sizes[1:] = [(height + 7, 2 * width + 3), (height // 2 + 1, width // 3 + 1)]
        channels = 3  # of a grey model as well: a graph has to make luma of it
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, channels), "uint8") for size in sizes]


def _request(signature, images, pixels):
    """Puts images as a signature wants them."""
    if signature.images.name == "pixels":
        return pixels
    encoded = [tf.io.encode_png(image).numpy() for image in images]
    if signature.images.name == "inputs":
        encoded = [serialize_example(content) for content in encoded]
    return tf.constant(encoded)


def _compare(name, received, expected, tolerance):
    """Raises unless two answers agree to rounding."""
    if set(received) != set(expected):
        raise ValueError(
            f"The SavedModel's {name} must answer {', '.join(sorted(expected))}. "
            f"Received: {', '.join(sorted(received))}"
        )
    for key, wanted in expected.items():
        difference = _difference(received[key].numpy(), wanted.numpy())
        if not difference <= tolerance:
            raise ValueError(
                f"The SavedModel's {name}: {key} must equal the model's to "
                f"{tolerance}. Received a difference of {difference:.2g}"
            )


def _difference(received, wanted):
    """Measures how far arrays differ: floats by their scale, others at all."""
    if received.shape != wanted.shape:
        return np.inf
    if wanted.dtype.kind != "f":
        return float((received != wanted).any())
    scale = np.abs(wanted).max(initial=0) or 1.0
    return np.abs(received - wanted).max(initial=0) / scale


def _with_ties(served, pixels, received, expected, tolerance):
    """Expects the classes that were named, if they are as likely as the best ones.

    Rounding may change the places of classes that are almost equally likely.
    """
    ids = received["class_ids"]
    scores = served.score(pixels)["scores"]  # (B, N)
    likely = tf.gather(scores, ids, batch_dims=1).numpy()  # (B, K)
    if _difference(likely, expected["probabilities"].numpy()) > tolerance:
        return expected
    return {**expected, "class_ids": ids, "labels": served.names_of(ids)}


def _check_empty(name, function, signature, expected):
    """Raises unless a signature answers a request about no images."""
    nothing = {
        spec.name: tf.zeros((0, *spec.shape[1:]), spec.dtype)
        for spec in signature.inputs
    }
    for key, value in function(**nothing).items():
        wanted = (0, *expected[key].shape[1:])
        if value.shape != wanted:
            raise ValueError(
                f"The SavedModel's {name}: {key} must be {wanted} of no images. "
                f"Received: {tuple(value.shape)}"
            )
