"""Base class of a SavedModel's signatures, and features, which every model has."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_mae.export.image_decoding import DEFAULT_MAX_PIXELS, decode_pixels

PREDICT_METHOD = tf.saved_model.PREDICT_METHOD_NAME


class Signature(NamedTuple):
    """A signature before it is traced."""

    # (B, H, W, C) pixels and `extra` by name -> dict of tensors with B rows each
    function: Callable
    images: tf.TensorSpec  # how a request gives its images
    read: Callable  # `images` -> pixels
    extra: tuple = ()  # TensorSpecs of further inputs
    method: str = PREDICT_METHOD  # of TF Serving

    @property
    def inputs(self):
        return (self.images, *self.extra)

    def trace(self, share):
        """Traces it; `share` makes (and caches) the `tf.function`s of its parts."""
        read, function = share(self.read), share(self.function)

        def answer(**inputs):
            return function(read(inputs.pop(self.images.name)), **inputs)

        specs = {spec.name: spec for spec in self.inputs}
        return tf.function(answer, autograph=False).get_concrete_function(**specs)


class ModelSignatures:
    """A model's signatures, here for features only."""

    def __init__(self, model, processor, max_pixels=DEFAULT_MAX_PIXELS):
        self.model = model
        self.processor = processor
        self.max_pixels = max_pixels
        self.encoder = getattr(model, "encoder", model)
        self.shape = (*self.encoder.image_size, self.encoder.num_channels)
        self.resources = []  # what a SavedModel needs beside the weights
        received = (*processor.image_size, processor.num_channels)
        if received != self.shape:
            raise ValueError(
                "The image processor's (height, width, channels) must be the model's, "
                f"{self.shape}. Received: {received}"
            )
        height, width, _ = self.shape
        if max_pixels < height * width:
            raise ValueError(
                f"max_pixels must be at least the model's {height * width}. "
                f"Received: {max_pixels}"
            )

    @property
    def takes_encoded_images(self):
        """Whether requests may have encoded images, which are grey or RGB."""
        return self.shape[-1] in (1, 3)

    def signatures(self):
        """Returns a dict from name to `Signature`, without `serving_default`."""
        return self.by_pixels_and_bytes("features", self.features)

    def by_pixels_and_bytes(self, name, function, *extra):
        """Makes a signature for pixels and, if possible, one for encoded images."""
        pixels = tf.TensorSpec((None, *self.shape), tf.float32, "pixels")
        made = {f"{name}_from_pixels": Signature(function, pixels, tf.identity, extra)}
        if self.takes_encoded_images:
            encoded = tf.TensorSpec((None,), tf.string, "image_bytes")
            made[name] = Signature(function, encoded, self._decode, extra)
        return made

    def _decode(self, image_bytes):
        return decode_pixels(image_bytes, self.processor, self.max_pixels)

    def features(self, pixels):
        """Encodes whole images, without masking."""
        return {
            "features": tf.cast(
                self.encoder(self.check_pixel_shape(pixels)), tf.float32
            )
        }

    def check_pixel_shape(self, pixels):
        """Raises on images of another shape, at which a convolution would crash."""
        return tf.ensure_shape(pixels, (None, *self.shape))


def assert_all(condition, message):
    """Turns a condition into an operation that fails with INVALID_ARGUMENT."""
    return tf.debugging.Assert(tf.reduce_all(condition), [message])
