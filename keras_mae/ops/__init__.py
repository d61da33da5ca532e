"""Array operations without weights: patches, positions, fusion and tracing."""

from keras_mae.ops.losses import removed_patch_loss
from keras_mae.ops.patches import (
    gather_tokens,
    normalize_patches,
    patchify,
    unpatchify,
)
from keras_mae.ops.positions import resize_positions, sincos_positions

__all__ = [
    "gather_tokens",
    "normalize_patches",
    "patchify",
    "removed_patch_loss",
    "resize_positions",
    "sincos_positions",
    "unpatchify",
]
