"""Weight conversion: the command `keras-mae-convert`, and KerasHub's `ViTBackbone`."""

from keras_mae.convert.keras_hub_backbone import from_keras_hub, to_keras_hub

__all__ = ["from_keras_hub", "to_keras_hub"]
