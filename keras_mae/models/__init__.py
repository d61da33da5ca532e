"""The models: what wires layers together."""

from keras_mae.models.classifier import MAEClassifier
from keras_mae.models.decoder import MAEDecoder
from keras_mae.models.encoder import MAEEncoder

__all__ = ["MAEClassifier", "MAEDecoder", "MAEEncoder"]
