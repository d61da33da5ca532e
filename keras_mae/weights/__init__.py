"""Weights of other libraries: the only room where their names are known.

Command: `python -m keras_mae.weights SOURCE DESTINATION [--format=...] [--check]`
"""

from keras_mae.weights.checkpoint import PortError
from keras_mae.weights.importer import load_weights
from keras_mae.weights.port import export_weights
from keras_mae.weights.report import PortReport

__all__ = ["PortError", "PortReport", "export_weights", "load_weights"]
