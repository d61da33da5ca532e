"""Masked Autoencoders in Keras: pretrain, look, export, serve."""

from keras_mae.models import MAEDecoder, MAEEncoder
from keras_mae.patches import normalize_patches, patchify, unpatchify
from keras_mae.positions import resize_positions, sincos_positions
from keras_mae.presets import PRESETS
from keras_mae.pretrainer import MAEPretrainer

__all__ = [
    "PRESETS",
    "MAEDecoder",
    "MAEEncoder",
    "MAEPretrainer",
    "normalize_patches",
    "patchify",
    "resize_positions",
    "sincos_positions",
    "unpatchify",
]
