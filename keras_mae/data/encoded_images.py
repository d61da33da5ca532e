"""What collections of encoded images share, wherever the bytes lie."""

from keras_mae.data.augmentation import centre_crop, random_window, resize_and_flip
from keras_mae.data.decoding import decode, decode_window


class EncodedImages:
    """Base of collections whose items are encoded RGB images.

    A subclass says what its items are: `__len__`, `training_items`, `held_out_items`,
    `name`, `encoded`, and of labelled images `label`.
    """

    channels = 3

    def training_image(self, item, processor, seed, augmentation):
        """Reads an image for training: a random crop in grey levels."""

        def window(shape):
            return random_window(shape, seed, augmentation.scale)

        if augmentation.crops:
            image = decode_window(self.encoded(item), window)
        else:
            image = decode(self.encoded(item))
        return resize_and_flip(image, processor.image_size, seed, augmentation.flip)

    def held_out_image(self, item, processor, seed):
        """Reads a held-out image: the middle of it, in grey levels."""
        return centre_crop(decode(self.encoded(item)), processor.image_size)
