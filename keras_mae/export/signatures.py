"""Base class of a SavedModel's signatures; features and embeddings of every model."""

import math
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_mae.export.image_decoding import (
    DEFAULT_MAX_PIXELS,
    decode_pixels,
    unpack_pixels,
)

PREDICT_METHOD = tf.saved_model.PREDICT_METHOD_NAME
# how a request gives its images, and the ends of signature names
ENCODED, PIXELS, PACKED = "image_bytes", "pixels", "pixels_u8"
SUFFIXES = {ENCODED: "", PIXELS: "_from_pixels", PACKED: "_from_pixels_u8"}
EMBEDDINGS = ("mean", "cls")


class Signature(NamedTuple):
    """A signature before it is traced."""

    # (B, H, W, C) pixels and `extra` by name -> dict of tensors with B rows each
    function: Callable
    finish: Callable  # what `function` returns -> the outputs
    images: tf.TensorSpec  # how a request gives its images
    read: Callable  # `images` -> pixels
    extra: tuple = ()  # TensorSpecs of further inputs
    method: str = PREDICT_METHOD  # of TF Serving
    row_bytes: int = 0  # of packed pixels

    @property
    def inputs(self):
        return (self.images, *self.extra)

    @property
    def batchable(self):
        """Whether no request can fail another one that a server runs with it."""
        extra = {spec.name for spec in self.extra}
        return self.images.name == PACKED and extra <= {"seed"}

    def trace(self, share):
        """Traces it; `share` makes (and caches) the `tf.function`s of its parts."""
        read, function = share(self.read), share(self.function)

        def answer(**inputs):
            pixels = read(inputs.pop(self.images.name))
            if self.batchable and inputs:
                pixels, inputs["seed"] = _nan_where_too_large(pixels, inputs["seed"])
            return self.finish(function(pixels, **inputs))

        specs = {spec.name: spec for spec in self.inputs}
        return tf.function(answer, autograph=False).get_concrete_function(**specs)


class ModelSignatures:
    """A model's signatures, here for features and embeddings only."""

    def __init__(
        self,
        model,
        processor,
        max_pixels=DEFAULT_MAX_PIXELS,
        embedding=None,
        normalize_embedding=True,
        batching=False,
    ):
        self.model = model
        self.processor = processor
        self.max_pixels = max_pixels
        self.embedding = self.choose_embedding(embedding)
        self.normalize_embedding = normalize_embedding
        self.batching = batching
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

    def choose_embedding(self, embedding):
        """Returns how tokens become an embedding."""
        if embedding not in (None, *EMBEDDINGS):
            raise ValueError(
                f"embedding must be one of {', '.join(EMBEDDINGS)}. "
                f"Received: {embedding!r}"
            )
        return embedding or EMBEDDINGS[0]

    @property
    def takes_encoded_images(self):
        """Whether requests may have encoded images, which are grey or RGB."""
        return self.shape[-1] in (1, 3)

    @property
    def default(self):
        """The name of the signature that is `serving_default` as well."""
        first = ENCODED if self.takes_encoded_images else PIXELS
        return "features" + SUFFIXES[PACKED if self.batching else first]

    def signatures(self):
        """Returns a dict from name to `Signature`, without `serving_default`."""
        made = self.all_signatures()
        return {name: made[name] for name in made if self.fits(made[name])}

    def fits(self, signature):
        """Whether a signature is exported: with batching only what can be batched."""
        return signature.batchable or not self.batching

    def all_signatures(self):
        """Returns a dict from name to `Signature`, as if without batching."""
        return {
            **self.by_kind_of_images("features", self.features),
            **self.by_kind_of_images("embed", self.features, self.embed),
        }

    def computations(self):
        """Returns functions of numbers, and their input names, for other runtimes."""
        return {"encode": (self.encode, (PIXELS,))}

    def by_kind_of_images(self, name, function, finish=dict, *extra):
        """Makes a signature for each way in which a request may give its images."""
        readers = {
            ENCODED: (tf.TensorSpec((None,), tf.string), self._decode),
            PIXELS: (tf.TensorSpec((None, *self.shape), tf.float32), tf.identity),
            PACKED: (tf.TensorSpec((None,), tf.string), self._unpack),
        }
        if not self.takes_encoded_images:
            del readers[ENCODED]
        made = {}
        for kind, (spec, read) in readers.items():
            made[name + SUFFIXES[kind]] = Signature(
                function,
                finish,
                tf.TensorSpec(spec.shape, spec.dtype, kind),
                read,
                extra,
                row_bytes=math.prod(self.shape) if kind == PACKED else 0,
            )
        return made

    def _decode(self, image_bytes):
        return decode_pixels(image_bytes, self.processor, self.max_pixels)

    def _unpack(self, rows):
        return unpack_pixels(rows, self.processor)

    def features(self, pixels):
        """Encodes whole images, without masking."""
        return {
            "features": tf.cast(
                self.encoder(self.check_pixel_shape(pixels)), tf.float32
            )
        }

    def encode(self, pixels):
        """Returns features and embeddings together."""
        outputs = self.features(pixels)
        return {**outputs, **self.embed(outputs)}

    def embed(self, outputs):
        """Pools features to a vector an image, by default of length 1."""
        tokens = outputs["features"]  # (B, 1 + L, D), or (B, D) of a classifier
        if tokens.shape.rank == 3:
            mean = tf.reduce_mean(tokens[:, 1:], axis=1)
            tokens = mean if self.embedding == "mean" else tokens[:, 0]  # (B, D)
        if self.normalize_embedding:
            tokens = tf.math.l2_normalize(tokens, axis=-1)
        return {"embedding": tokens}

    def check_pixel_shape(self, pixels):
        """Raises on images of another shape, at which a convolution would crash."""
        return tf.ensure_shape(pixels, (None, *self.shape))


def assert_all(condition, message):
    """Turns a condition into an operation that fails with INVALID_ARGUMENT."""
    return tf.debugging.Assert(tf.reduce_all(condition), [message])


def assert_rows(tensor, pixels, name):
    """Makes an operation that fails unless a tensor has a row for each image."""
    fits = tf.equal(tf.shape(tensor)[0], tf.shape(pixels)[0])
    return assert_all(fits, f"{name} must have a row for each image")


def fits_32_bits(seed):
    """Returns which int64 numbers are int32 as well."""
    return tf.equal(seed, tf.cast(tf.cast(seed, tf.int32), tf.int64))


def _nan_where_too_large(pixels, seed):
    """Turns the images of seeds above 32 bits into NaN, instead of an error."""
    seed = tf.ensure_shape(seed, (None,))
    # one image with several seeds would be broadcast
    with tf.control_dependencies([assert_rows(seed, pixels, "seed")]):
        fits = fits_32_bits(seed)
    nan = tf.constant(float("nan"))
    return tf.where(fits[:, None, None, None], pixels, nan), tf.where(fits, seed, 0)
