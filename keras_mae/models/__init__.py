"""The models: layers and what they are trained for."""

from keras_mae.models.classifier import MAEClassifier
from keras_mae.models.decoder import MAEDecoder
from keras_mae.models.encoder import MAEEncoder
from keras_mae.models.layouts import get_layout_map
from keras_mae.models.pretrainer import MAEPretrainer
from keras_mae.models.segmenter import MAESegmenter

__all__ = [
    "MAEClassifier",
    "MAEDecoder",
    "MAEEncoder",
    "MAEPretrainer",
    "MAESegmenter",
    "get_layout_map",
]
