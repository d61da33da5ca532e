"""Splits large-image requests, so that cancelled ones stop early.

A run of TensorFlow can't be stopped. So a request is run in parts of few pixels, one
image at least, and ends after the part in which its client cancelled.
"""

import io
import itertools
import warnings

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from PIL import Image

# decoded and resized in about two seconds on two cores
MOST_PIXELS = 16_000_000
# 60 MB of empty segments before a JPEG's size would take half a minute
_MOST_HEADER_BYTES = 2**18
# other formats would be an error in the model
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "WEBP")
# of sizes that only the graph judges
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# inputs of models that keras_mae exports, whose rows are computed one by one
_BYTES, _EXAMPLES, _PIXELS = "image_bytes", "inputs", "pixels"
_PACKED = "pixels_u8"


def split(inputs, check=lambda: None):
    """Yields `inputs`, a dict of arrays, in parts that follow each other."""
    sizes = _pixels_per_row(inputs, check)
    if sizes is None or sum(sizes) <= MOST_PIXELS or _has_wrong_rows(inputs, sizes):
        yield inputs
        return
    begins, total = [0], 0
    for index, size in enumerate(sizes):
        if index > begins[-1] and total + size > MOST_PIXELS:
            begins.append(index)
            total = 0
        total += size
    for begin, end in itertools.pairwise([*begins, len(sizes)]):
        yield {name: array[begin:end] for name, array in inputs.items()}


def join(parts):
    """Joins the outputs of parts, dicts of arrays with a row for each image."""
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _pixels_per_row(inputs, check):
    """Returns the pixels of each image, or `None` if there are no images."""
    if _BYTES in inputs and np.ndim(inputs[_BYTES]) == 1:
        return [_announced(encoded, check) for encoded in inputs[_BYTES]]
    if _PIXELS in inputs and np.ndim(inputs[_PIXELS]) == 4:
        count, height, width, _ = inputs[_PIXELS].shape
        return [height * width] * count
    if _PACKED in inputs and np.ndim(inputs[_PACKED]) == 1:
        return [len(row) for row in inputs[_PACKED]]
    if set(inputs) == {_EXAMPLES} and np.ndim(inputs[_EXAMPLES]) == 1:
        return [_announced(_image_in(one), check) for one in inputs[_EXAMPLES]]
    return None


def _has_wrong_rows(inputs, sizes):
    """Whether the graph must see all rows together, because it will refuse them."""
    if any(
        np.ndim(array) == 0 or len(array) != len(sizes) for array in inputs.values()
    ):
        return True
    removed = inputs["mask"].sum(axis=-1) if "mask" in inputs else np.zeros(1)
    return bool((removed != removed[:1]).any())


def _announced(encoded, check):
    """Returns the pixels in an image's header; 0 for what is no image."""
    check()
    if not isinstance(encoded, bytes):
        return 0
    begin = encoded[:_MOST_HEADER_BYTES]
    try:
        with Image.open(io.BytesIO(begin), formats=_FORMATS) as image:
            return image.width * image.height
    # each reader fails in its own ways, and a bomb is for the graph to refuse
    except Exception:
        # one whose header is long counts as large
        return MOST_PIXELS if len(encoded) > len(begin) else 0


def _image_in(example):
    """Returns the image in a serialized `tf.train.Example`."""
    try:
        features = tf.train.Example.FromString(example).features.feature
        (encoded,) = features["image/encoded"].bytes_list.value
        return encoded
    except (DecodeError, TypeError, ValueError):
        return None
