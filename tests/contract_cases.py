"""Examples of the public layers and optimizers, as plain data."""

import dataclasses

import numpy as np

from keras_mae import LARS, FineTuningAdamW, MatrixDecayAdamW, warmup_cosine
from keras_mae.layers import (
    MLP,
    PatchEmbedding,
    PositionEmbedding,
    RandomMasking,
    SelfAttention,
    StochasticDepth,
    TransformerBlock,
)
from keras_mae.ops.activations import gelu_tanh

BATCH = 3


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Shape and dtype of a tensor that goes in or comes out.

    Args:
        shape: Tuple; an axis of `None` is the batch's.
        dtype: Name, or `"compute"` for the compute dtype of the policy.
        below: Int, for integers: a row holds numbers below it, none of them twice
            unless it is longer.
    """

    shape: tuple
    dtype: str = "compute"
    below: int | None = None

    def draw(self, rng):
        """Draws an array of `BATCH` rows."""
        shape = tuple(BATCH if axis is None else axis for axis in self.shape)
        if self.below is None:
            return rng.standard_normal(shape).astype("float32")
        size = int(np.prod(shape[1:]))
        rows = np.tile(np.arange(max(size, self.below)) % self.below, (BATCH, 1))
        return rng.permuted(rows, axis=1)[:, :size].reshape(shape).astype("int32")


@dataclasses.dataclass(frozen=True)
class Case:
    """An example of a layer or model.

    Args:
        kind: The class.
        arguments: Dict, those of the constructor. All cases of a class together give
            each argument a value that is not the default.
        inputs: Dict from call argument to `Tensor`, the first one first.
        outputs: A `Tensor`, or tuple or dict of them: what a call returns.
        weights: Int, how many there are.
        trained: Int, how many of them are trained.
        seeds: Int, how many generators of random seeds there are.
        options: Dict of further call arguments.
        parts: Function of a dtype policy that returns a dict of constructor arguments:
            the models inside.
        fixed: Names of a base class's arguments that the class doesn't take.
        labels: `Tensor` of what `fit` is given beside the inputs, or `None`.
        compiled: Dict, arguments of `compile`, or `None` where `fit` is not tried.
    """

    kind: type
    arguments: dict
    inputs: dict
    outputs: object
    weights: int
    trained: int
    seeds: int = 0
    options: dict = dataclasses.field(default_factory=dict)
    parts: object = lambda dtype: {}
    fixed: tuple = ()
    labels: Tensor | None = None
    compiled: dict | None = None

    def make(self, dtype="float32", **kwargs):
        """Builds the layer; what is no model gets its weights at the first call."""
        arguments = {**self.parts(dtype), **self.arguments, **kwargs}
        return self.kind(**arguments, dtype=dtype)

    def draw(self):
        """Draws inputs, the same ones at each call."""
        rng = np.random.default_rng(0)
        return {name: tensor.draw(rng) for name, tensor in self.inputs.items()}

    def call(self, layer, inputs):
        """Calls a layer as users do: the first input by its place."""
        first, *others = self.inputs
        others = {name: inputs[name] for name in others}
        return layer(inputs[first], **others, **self.options)


BLOCK = {
    "num_heads": 2,
    "mlp_dim": 12,
    "activation": gelu_tanh,
    "qkv_bias": False,
    "layer_norm_epsilon": 1e-5,
    "kernel_initializer": "he_normal",
}
DROPOUTS = {"dropout_rate": 0.1, "attention_dropout_rate": 0.2}
TOKENS = Tensor((None, 5, 8))

LAYERS = {
    "PositionEmbedding": Case(
        PositionEmbedding,
        {"hidden_dim": 8, "grid": (2, 3)},
        {"tokens": Tensor((None, 7, 8))},
        Tensor((None, 7, 8)),
        weights=1,
        trained=0,
    ),
    "PositionEmbedding of some": Case(
        PositionEmbedding,
        {"hidden_dim": 8, "grid": (2, 3), "learned": True},
        {"tokens": TOKENS, "ids_keep": Tensor((None, 4), below=6)},
        TOKENS,
        weights=1,
        trained=1,
    ),
    "PositionEmbedding resized": Case(
        PositionEmbedding,
        {"hidden_dim": 8, "grid": (2, 3)},
        {"tokens": Tensor((None, 1 + 15, 8))},
        Tensor((None, 1 + 15, 8)),
        options={"grid": (5, 3)},
        weights=1,
        trained=0,
    ),
    "PatchEmbedding": Case(
        PatchEmbedding,
        {
            "hidden_dim": 8,
            "grid": (2, 3),
            "kernel_initializer": "he_normal",
            "initializer_range": 0.1,
            "train_positions": True,
        },
        {"patches": Tensor((None, 6, 12)), "ids_keep": Tensor((None, 4), below=6)},
        TOKENS,
        weights=4,
        trained=4,
    ),
    "RandomMasking": Case(
        RandomMasking,
        {"seed": 3},
        {"patches": Tensor((None, 8, 5))},
        {
            "ids_keep": Tensor((None, 2), "int32"),
            "ids_shuffle": Tensor((None, 8), "int32"),
            "ids_restore": Tensor((None, 8), "int32"),
            "mask": Tensor((None, 8), "float32"),
        },
        options={"mask_ratio": 0.75},
        weights=0,
        trained=0,
        seeds=1,
    ),
    "StochasticDepth": Case(
        StochasticDepth,
        {"rate": 0.5, "depth": 4, "seed": 3},
        {"x": TOKENS},
        Tensor((None, 4, 2), "float32"),
        weights=0,
        trained=0,
        seeds=1,
    ),
    "SelfAttention": Case(
        SelfAttention,
        {
            "hidden_dim": 8,
            "num_heads": 2,
            "dropout_rate": 0.1,
            "use_bias": False,
            "kernel_initializer": "he_normal",
        },
        {"x": TOKENS},
        (TOKENS, Tensor((None, 2, 5, 5))),
        weights=3,
        trained=3,
        seeds=1,
    ),
    "MLP": Case(
        MLP,
        {
            "hidden_dim": 8,
            "mlp_dim": 12,
            "activation": gelu_tanh,
            "kernel_initializer": "he_normal",
        },
        {"x": TOKENS},
        TOKENS,
        weights=4,
        trained=4,
    ),
    "TransformerBlock": Case(
        TransformerBlock,
        {"hidden_dim": 8, **BLOCK, **DROPOUTS},
        {"x": TOKENS},
        (TOKENS, Tensor((None, 2, 5, 5))),
        weights=11,
        trained=11,
        seeds=3,
    ),
    "TransformerBlock with factors": Case(
        TransformerBlock,
        {"hidden_dim": 8, "num_heads": 2, "mlp_dim": 12, "residual_dtype": "float32"},
        {"x": TOKENS, "factors": Tensor((None, 2), "float32")},
        (Tensor((None, 2, 8), "float32"), Tensor((None, 2, 2, 5))),
        options={"first_query": 3},
        weights=12,
        trained=12,
    ),
}

# 2 ** -10 is exact in the float32 that a config gives
ADAMW = {"learning_rate": 2**-10, "weight_decay": 0.03, "beta_2": 0.95, "epsilon": 1e-6}
ADAMW |= {"use_ema": True, "ema_warmup": True}
OPTIMIZERS = {
    "LARS": (
        LARS,
        {
            "learning_rate": warmup_cosine(0.1, 20, 5),
            "momentum": 0.8,
            "trust_coefficient": 0.01,
            "weight_decay": 0.1,
        },
    ),
    "MatrixDecayAdamW": (MatrixDecayAdamW, ADAMW),
    "FineTuningAdamW": (FineTuningAdamW, {**ADAMW, "layer_decay": 0.7, "depth": 2}),
}
