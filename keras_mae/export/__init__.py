"""Serving: a model's signatures, in a SavedModel that TF Serving loads."""

from keras_mae.export.savedmodel import export
from keras_mae.export.task_signatures import serve
from keras_mae.export.verification import verify
from keras_mae.export.warmup import WARMUP_PATH, sample_inputs
from keras_mae.models.loading import find_labels
from keras_mae.utils.class_names import read_labels, write_labels

__all__ = [
    "WARMUP_PATH",
    "export",
    "find_labels",
    "read_labels",
    "sample_inputs",
    "serve",
    "verify",
    "write_labels",
]
