"""The models: what wires layers together."""

from keras_mae.models.decoder import MAEDecoder
from keras_mae.models.encoder import MAEEncoder

__all__ = ["MAEDecoder", "MAEEncoder"]
