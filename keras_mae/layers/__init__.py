"""Layers: patch and position embedding, random masking, transformer blocks."""

from keras_mae.layers.attention import SelfAttention
from keras_mae.layers.masking import RandomMasking
from keras_mae.layers.mlp import MLP
from keras_mae.layers.noise import seeded_noise
from keras_mae.layers.patch_embedding import PatchEmbedding, PositionEmbedding
from keras_mae.layers.stochastic_depth import StochasticDepth
from keras_mae.layers.transformer import TransformerBlock

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
