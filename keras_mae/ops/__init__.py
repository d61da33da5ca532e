"""Array operations without weights: patches, positions, fusion and tracing."""

from keras_mae.ops.patches import normalize_patches, patchify, unpatchify
from keras_mae.ops.positions import resize_positions, sincos_positions

__all__ = [
    "normalize_patches",
    "patchify",
    "resize_positions",
    "sincos_positions",
    "unpatchify",
]
