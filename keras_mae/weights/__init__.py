"""Pretrained weights of other libraries, from Hugging Face to lightly: load and save.

Command: `python -m keras_mae.weights SOURCE DESTINATION [--format=...] [--check]`
"""

from keras_mae.weights.checkpoint import PortError
from keras_mae.weights.load_pretrained import load_weights
from keras_mae.weights.report import PortReport
from keras_mae.weights.state_dict import export_weights

__all__ = ["PortError", "PortReport", "export_weights", "load_weights"]
