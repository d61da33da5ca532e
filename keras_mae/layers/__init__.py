"""The layers: whatever owns weights or randomness."""

from keras_mae.layers.masking import RandomMasking, seeded_noise
from keras_mae.layers.patch_embedding import PatchEmbedding, PositionEmbedding
from keras_mae.layers.stochastic_depth import StochasticDepth
from keras_mae.layers.transformer import MLP, SelfAttention, TransformerBlock

__all__ = [
    "MLP",
    "PatchEmbedding",
    "PositionEmbedding",
    "RandomMasking",
    "SelfAttention",
    "StochasticDepth",
    "TransformerBlock",
    "seeded_noise",
]
