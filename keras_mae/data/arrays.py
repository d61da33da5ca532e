"""Image collection of arrays in memory."""

import itertools

import numpy as np
import tensorflow as tf

from keras_mae.data.augmentation import (
    PRETRAINING,
    WHOLE,
    random_flip,
    random_resized_crop,
    resize,
)

# up to this size, all resized images are kept
_KEPT_BYTES = 256 * 2**20


class ImageArrays:
    """`(H, W, C)` uint8 arrays, which may differ in size."""

    def __init__(self, images, crop, repeats=1, labels=None):
        self._crop = crop  # whether held-out images are random windows, or whole
        self._repeats = repeats  # of each image in an epoch
        # bytes, because images of several sizes don't stack
        self._raw = tf.constant([image.tobytes() for image in images])
        self._shapes = tf.constant([image.shape for image in images])
        self._count = len(images)
        self._labels = labels
        self._images = images
        self._resized = {}
        self._channels = images[0].shape[-1]

    @property
    def readable_channels(self):
        return (self._channels,)

    def __len__(self):
        return self._count

    def training_items(self, order):
        """Shuffles the images without end: `(position, index)`."""
        indices = order.indices(self._count * self._repeats)
        return indices.map(lambda position, index: (position, index % self._count))

    def held_out_items(self):
        """Lists the images without end: photographs get other crops each time."""
        return tf.data.Dataset.range(self._count).repeat()

    def training_image(self, index, processor, seed, augmentation):
        """Reads an image for training: `(height, width, C)` grey levels."""
        size = processor.image_size
        if augmentation.crops:
            return random_resized_crop(
                self._image(index),
                size,
                seed,
                augmentation.scale,
                augmentation.flip,
                augmentation.clip_sides,
            )
        if self._count * size[0] * size[1] * self._channels > _KEPT_BYTES:
            image = resize(self._image(index), size, processor.resample)
        else:
            whole = self._whole(size, processor.resample)
            image = tf.cast(whole[index], tf.float32)
        if augmentation.flip:
            image = random_flip(image, seed)
        return image

    def held_out_image(self, index, processor, seed, crop):
        """Reads a held-out image: a crop, or without `crop` the whole image."""
        augmentation = PRETRAINING if self._crop and crop else WHOLE
        return self.training_image(index, processor, seed, augmentation)

    def label(self, index):
        return tf.constant(self._labels, tf.int64)[index]

    def name(self, index):
        return tf.strings.join(["image ", tf.strings.as_string(index)])

    @tf.autograph.experimental.do_not_convert
    def _whole(self, size, resample):
        """Resizes all images once: `(N, height, width, C)` uint8 grey levels."""
        if (size, resample) not in self._resized:
            resized = np.empty((self._count, *size, self._channels), "uint8")
            by_shape = sorted(range(self._count), key=self._shape)
            # eagerly: the pipeline's graph only looks images up
            with tf.init_scope():
                for _, alike in itertools.groupby(by_shape, self._shape):
                    while rows := list(itertools.islice(alike, 256)):
                        images = np.stack([self._images[row] for row in rows])
                        resized[rows] = resize(images, size, resample)
                self._resized[size, resample] = tf.constant(resized)
        return self._resized[size, resample]

    def _shape(self, row):
        return self._images[row].shape

    def _image(self, index):
        image = tf.io.decode_raw(self._raw[index], tf.uint8)
        image = tf.reshape(image, self._shapes[index])  # (H, W, C)
        return tf.ensure_shape(image, (None, None, self._channels))
