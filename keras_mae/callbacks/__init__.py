"""Callbacks of a training: checkpoints, curves, pictures, validation, early ends."""

from keras_mae.callbacks.checkpoints import Checkpoints
from keras_mae.callbacks.pictures import ReconstructionPictures
from keras_mae.callbacks.stopping import StopOnCorruptImages, StopOnNonFiniteLoss
from keras_mae.callbacks.tensorboard import Curves
from keras_mae.callbacks.throughput import Throughput
from keras_mae.callbacks.validation import Validation
from keras_mae.callbacks.write_errors import IgnoreWriteErrors

__all__ = [
    "Checkpoints",
    "Curves",
    "IgnoreWriteErrors",
    "ReconstructionPictures",
    "StopOnCorruptImages",
    "StopOnNonFiniteLoss",
    "Throughput",
    "Validation",
]
