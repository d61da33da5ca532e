"""Export of models to SavedModel for TF Serving, and for other runtimes."""

from keras_mae.export.image_decoding import DEFAULT_MAX_PIXELS
from keras_mae.export.runtimes import export_runtime, load_runtime, verify_runtime
from keras_mae.export.savedmodel import export_savedmodel
from keras_mae.export.task_signatures import build_signatures
from keras_mae.export.verification import verify_savedmodel
from keras_mae.export.warmup import WARMUP_PATH, sample_inputs
from keras_mae.utils.labels_file import read_labels, write_labels

__all__ = [
    "DEFAULT_MAX_PIXELS",
    "WARMUP_PATH",
    "build_signatures",
    "export_runtime",
    "export_savedmodel",
    "load_runtime",
    "read_labels",
    "sample_inputs",
    "verify_runtime",
    "verify_savedmodel",
    "write_labels",
]
