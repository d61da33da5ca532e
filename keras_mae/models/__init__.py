"""The models: what wires layers together."""

from keras_mae.models.classifier import MAEClassifier
from keras_mae.models.decoder import MAEDecoder
from keras_mae.models.encoder import MAEEncoder
from keras_mae.models.segmenter import MAESegmenter

__all__ = ["MAEClassifier", "MAEDecoder", "MAEEncoder", "MAESegmenter"]
