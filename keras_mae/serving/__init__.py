"""Serving: a model's signatures, in a SavedModel that TF Serving loads."""

from keras_mae.serving.labels import find_labels, read_labels, write_labels
from keras_mae.serving.savedmodel import export
from keras_mae.serving.served import serve
from keras_mae.serving.verification import verify
from keras_mae.serving.warmup import WARMUP_PATH, sample_inputs

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
