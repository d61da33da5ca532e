"""Base class of image collections that are decoded on the fly."""

from keras_mae.data.augmentation import center_crop, resize_and_flip
from keras_mae.data.decoding import decode, decode_window
from keras_mae.data.random_crop import random_window


class EncodedImages:
    """Base class of collections of encoded RGB images.

    A subclass defines `__len__`, `training_items`, `held_out_items`, `name`, `encoded`,
    and `label` where there are labels.
    """

    channels = 3

    def training_image(self, item, processor, seed, augmentation):
        """Reads an image for training: a random crop."""

        def window(shape):
            return random_window(
                shape, seed, augmentation.scale, augmentation.clip_sides
            )

        if augmentation.crops:
            image = decode_window(self.encoded(item), window)
        else:
            image = decode(self.encoded(item))
        return resize_and_flip(image, processor.image_size, seed, augmentation.flip)

    def held_out_image(self, item, processor, seed):
        """Reads a held-out image: its center crop."""
        return center_crop(decode(self.encoded(item)), processor.image_size)
