"""Weight conversion: the command `keras-mae-convert`, and KerasHub's `ViTBackbone`."""
