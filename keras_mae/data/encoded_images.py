"""Base classes of image collections that are decoded on the fly."""

import hashlib

import tensorflow as tf

from keras_mae.data.augmentation import (
    center_crop,
    random_flip,
    resize,
    resize_and_flip,
)
from keras_mae.data.decoding import decode, decode_window, to_luma
from keras_mae.data.exif_orientation import decode_upright, decode_window_upright
from keras_mae.data.random_crop import random_window

# of a collection that doesn't say which images are held out
_HELD_OUT_SHARE = 0.02


class EncodedImages:
    """Base class of collections of encoded images, read as grayscale or RGB.

    A subclass defines `__len__`, `training_items`, `held_out_items`, `name`, `encoded`,
    `without`, and `label` where there are labels. Pipelines read several images at a
    time, so `encoded` is called from several threads.
    """

    readable_channels = (1, 3)

    def training_image(self, item, processor, seed, augmentation):
        """Reads an image for training: a random crop, or the whole image."""

        def window(shape):
            return random_window(
                shape, seed, augmentation.scale, augmentation.clip_sides
            )

        if not augmentation.crops:
            image = self._whole_image(item, processor)
            return random_flip(image, seed) if augmentation.flip else image
        _, part = _decoders(processor)
        image = part(self.encoded(item), window)
        return resize_and_flip(image, processor.image_size, seed, augmentation.flip)

    def held_out_image(self, item, processor, seed, crop):
        """Reads a held-out image: its center crop, or without `crop` the whole."""
        if not crop:
            return self._whole_image(item, processor)
        whole, _ = _decoders(processor)
        return center_crop(whole(self.encoded(item)), processor.image_size)

    def _whole_image(self, item, processor):
        """Reads an image and resizes it as `MAEImageProcessor` does."""
        whole, _ = _decoders(processor)
        image = whole(self.encoded(item))
        return resize(image, processor.image_size, processor.resample)


class IndexedImages(EncodedImages):
    """Base class of encoded images that are read by index, in any order.

    A subclass defines `__len__`, `encoded`, `chosen`, `without`, and for each image:
    `keys`, bytes that stay when others come or go; `shown_names`, bytes; and `labels`,
    an int array.
    """

    place: str  # where the images are, for errors

    def __init__(self):
        self._tensors = {}

    def training_items(self, order):
        """Shuffles the images without end: `(position, index)`."""
        return order.indices(len(self))

    def held_out_items(self):
        """Lists the images once, by hash: the first few are of several classes."""
        return tf.data.Dataset.from_tensor_slices(
            tf.constant(_by_hash(self.keys), tf.int64)
        )

    def divided(self):
        """Holds out 2 % of the images, at least one: those with the smallest hashes."""
        if len(self) < 2:
            raise ValueError(
                f"{self.place} must hold at least two images, one of them held out, "
                f"unless held_out names others. Received: {len(self)}"
            )
        # by hash: the same images in whatever order they are listed
        turns = _by_hash(self.keys)
        count = max(1, round(len(turns) * _HELD_OUT_SHARE))
        return self.chosen(sorted(turns[count:])), self.chosen(turns[:count])

    def name(self, index):
        """Returns an image's name, or those of several."""
        return self._look_up("names", index, lambda: self.shown_names)

    def label(self, index):
        """Returns an image's class."""
        return self._look_up("labels", index, lambda: self.labels)

    # AutoGraph would warn that it can't read the source of `os.fsencode`
    @tf.autograph.experimental.do_not_convert
    def _look_up(self, table, index, make):
        """Looks up `make()[index]`; the table is built once, outside of graphs."""
        if table not in self._tensors:
            with tf.init_scope():
                self._tensors[table] = tf.convert_to_tensor(make())
        return tf.gather(self._tensors[table], index)


def _by_hash(keys):
    """Sorts the indices of keys by the keys' hashes."""
    hashes = [hashlib.sha256(key).digest() for key in keys]
    return sorted(range(len(hashes)), key=hashes.__getitem__)


def _decoders(processor):
    """Returns the functions that decode a whole image, and a part."""
    decoders = decode, decode_window
    if processor.exif_orientation:
        decoders = decode_upright, decode_window_upright
    if processor.num_channels == 3:
        return decoders
    return [lambda *args, read=read: to_luma(read(*args)) for read in decoders]
