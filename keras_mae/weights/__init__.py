"""Weights of other libraries: the only room where their names are known."""

from keras_mae.weights.port import PortError, export_weights, import_weights
from keras_mae.weights.tables import huggingface_rows

__all__ = ["PortError", "export_weights", "huggingface_rows", "import_weights"]
