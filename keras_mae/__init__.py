"""Masked Autoencoders in Keras: pretrain, look, export, serve."""

# isort: off
from keras_mae import _quiet_import  # noqa: F401

# isort: on
from keras_mae import weights
from keras_mae._version import __version__ as __version__
from keras_mae.image_processor import MAEImageProcessor
from keras_mae.lars import LARS
from keras_mae.layer_decay import FineTuningAdamW, finetuning_optimizer
from keras_mae.models import MAEClassifier, MAEDecoder, MAEEncoder, MAESegmenter
from keras_mae.optimization import (
    MatrixDecayAdamW,
    pretraining_optimizer,
    warmup_cosine,
)
from keras_mae.patches import normalize_patches, patchify, unpatchify
from keras_mae.positions import resize_positions, sincos_positions
from keras_mae.presets import PRESETS
from keras_mae.pretrainer import MAEPretrainer
from keras_mae.visualization import draw_reconstructions

__all__ = [
    "LARS",
    "PRESETS",
    "FineTuningAdamW",
    "MAEClassifier",
    "MAEDecoder",
    "MAEEncoder",
    "MAEImageProcessor",
    "MAEPretrainer",
    "MAESegmenter",
    "MatrixDecayAdamW",
    "draw_reconstructions",
    "finetuning_optimizer",
    "normalize_patches",
    "patchify",
    "pretraining_optimizer",
    "resize_positions",
    "sincos_positions",
    "unpatchify",
    "warmup_cosine",
    "weights",
]
