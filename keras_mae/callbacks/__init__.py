"""Keras callbacks: checkpoints, logs, pictures, throughput, probes, stopping."""

from keras_mae.callbacks.checkpoints import Checkpoints
from keras_mae.callbacks.mask_ratio import MaskRatioSchedule
from keras_mae.callbacks.pictures import ReconstructionPictures
from keras_mae.callbacks.probe import FeatureProbe
from keras_mae.callbacks.stopping import StopOnCorruptImages, StopOnNonFiniteLoss
from keras_mae.callbacks.tensorboard import TensorBoardScalars
from keras_mae.callbacks.throughput import Throughput
from keras_mae.callbacks.trackers import MLflowLogger, WandbLogger
from keras_mae.callbacks.validation import Validation
from keras_mae.callbacks.write_errors import IgnoreWriteErrors

__all__ = [
    "Checkpoints",
    "FeatureProbe",
    "IgnoreWriteErrors",
    "MLflowLogger",
    "MaskRatioSchedule",
    "ReconstructionPictures",
    "StopOnCorruptImages",
    "StopOnNonFiniteLoss",
    "TensorBoardScalars",
    "Throughput",
    "Validation",
    "WandbLogger",
]
