"""Image preprocessing: `MAEImageProcessor`."""

from keras_mae.preprocessing.image_processor import MAEImageProcessor

__all__ = ["MAEImageProcessor"]
