"""Export of models to SavedModel, with signatures for TF Serving."""

from keras_mae.export.image_decoding import DEFAULT_MAX_PIXELS
from keras_mae.export.savedmodel import export_savedmodel
from keras_mae.export.task_signatures import build_signatures
from keras_mae.export.verification import verify_savedmodel
from keras_mae.export.warmup import WARMUP_PATH, sample_inputs
from keras_mae.utils.class_names import read_labels, write_labels

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "WARMUP_PATH",
    "build_signatures",
    "export_savedmodel",
    "read_labels",
    "sample_inputs",
    "verify_savedmodel",
    "write_labels",
]
