"""Images to what a model takes, and back."""

from keras_mae.preprocessing.image_processor import MAEImageProcessor

__all__ = ["MAEImageProcessor"]
