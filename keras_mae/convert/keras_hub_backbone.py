"""Converts `MAEEncoder` to the `ViTBackbone` of the library KerasHub, and back.

Needs the package `keras_hub` (`pip install keras-hub`), imported when a function is
called. KerasHub's tasks and presets then work on the backbone; weights and outputs are
the same. What cannot match:

- A `ViTBackbone` never masks, takes images of one size only, and returns only tokens:
  no `interpolate`, `hidden_states`, `attentions` or `feature_maps`.
- It has the exact GELU, a bias in every layer, CLS and a final norm; other encoders and
  backbones raise an error. So do `dropout_rate`, which acts in other places there, and
  `drop_path_rate`, which it lacks.
- It trains the positions, whatever `train_positions` says here. `seed`, initializers,
  `rematerialize` and `trainable` are not converted either.
- It takes images as they are: `MAEImageProcessor` prepares them, or a converter in
  KerasHub's task that has the same mean and standard deviation.
- `pooling="gap"` of KerasHub's classifier averages CLS too, behind the final norm: not
  what `pooling="mean"` of `MAEClassifier` does. Its `"token"` is our `"cls"`.
- Under bfloat16 the weights are the same, and the outputs to within its rounding.
"""

import keras
import numpy as np
from keras import ops

from keras_mae.models import MAEEncoder
from keras_mae.weights.checkpoint import key_differences, raise_problems
from keras_mae.weights.state_dict import find_variable

# settings of both: our name, KerasHub's
_SIZES = {
    "patch_size": "patch_size",
    "hidden_dim": "hidden_dim",
    "depth": "num_layers",
    "num_heads": "num_heads",
    "mlp_dim": "mlp_dim",
    "attention_dropout_rate": "attention_dropout",
    "layer_norm_epsilon": "layer_norm_epsilon",
}
# settings that only one side has, and what the other side always does;
# qkv_bias: without it KerasHub drops the output projection's bias as well
_OURS_FIXED = {
    "activation": "gelu",
    "drop_path_rate": 0.0,
    "dropout_rate": 0.0,
    "final_norm": True,
    "qkv_bias": True,
}
_THEIRS_FIXED = {
    "data_format": "channels_last",
    "dropout_rate": 0.0,
    "use_class_token": True,
    "use_mha_bias": True,
    "use_mlp_bias": True,
    "use_patch_bias": True,
}

# Variables: ours, KerasHub's. No transforms: where shapes differ, values lie in the
# same order, (p_h, p_w, C) of a patch and (head, head_dim) of a projection alike.
_EMBEDDING = "vit_patching_and_embedding"
_OUTSIDE = (
    ("patch_embedding.cls_token", f"{_EMBEDDING}/class_token"),
    (
        "patch_embedding.positions.embeddings",
        f"{_EMBEDDING}/position_embedding/embeddings",
    ),
    ("patch_embedding.projection.kernel", f"{_EMBEDDING}/patch_embedding/kernel"),
    ("patch_embedding.projection.bias", f"{_EMBEDDING}/patch_embedding/bias"),
    ("norm.gamma", "vit_encoder/ln/gamma"),
    ("norm.beta", "vit_encoder/ln/beta"),
)
# a block's layers: ours, KerasHub's, and their variables; ours holds several side by
# side, along its last axis
_NORM, _DENSE = ("gamma", "beta"), ("kernel", "bias")
_BLOCK = (
    ("norm1", ("ln_1",), _NORM),
    ("attention.qkv", ("mha/query", "mha/key", "mha/value"), _DENSE),
    ("attention.proj", ("mha/attention_output",), _DENSE),
    ("norm2", ("ln_2",), _NORM),
    ("mlp.fc1", ("mlp/dense_1",), _DENSE),
    ("mlp.fc2", ("mlp/dense_2",), _DENSE),
)


def to_keras_hub(encoder: MAEEncoder) -> keras.Model:
    """Converts an encoder to a KerasHub backbone with the same weights.

    Args:
        encoder: A `MAEEncoder`; images and patches need not be square.

    Returns:
        A `keras_hub.models.ViTBackbone` with the encoder's dtype policy. It returns
        the same tokens as `encoder(images)`, and shares no variable with it.

    Raises:
        ValueError: If KerasHub is not installed or does not support the encoder, or
            if a variable on one side has none on the other.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
    images = np.random.rand(2, 32, 32, 3).astype("float32")
    try:
        backbone = to_keras_hub(encoder)
    except ValueError as error:
        assert "keras-hub" in str(error)  # it is not installed
    else:
        np.testing.assert_allclose(backbone(images), encoder(images), atol=1e-5)
    ```
    """
    keras_hub = _import_keras_hub()
    _check_type(encoder, "encoder", MAEEncoder)
    config = encoder.get_config()
    _check_settings(config, _OURS_FIXED, "ViTBackbone does not support this encoder")
    backbone = keras_hub.models.ViTBackbone(
        image_shape=(*encoder.image_size, encoder.num_channels),
        data_format="channels_last",
        dtype=encoder.dtype_policy,
        **{theirs: config[ours] for ours, theirs in _SIZES.items()},
    )
    for ours, theirs in _pair_variables(encoder, backbone):
        values = np.split(ops.convert_to_numpy(ours), len(theirs), axis=-1)
        for variable, value in zip(theirs, values, strict=True):
            variable.assign(value.reshape(variable.shape))
    return backbone


def from_keras_hub(backbone: keras.Model) -> MAEEncoder:
    """Converts a KerasHub backbone to an encoder with the same weights.

    Args:
        backbone: A `keras_hub.models.ViTBackbone`, fine-tuned or from a preset.

    Returns:
        A `MAEEncoder` with the backbone's dtype policy. It returns the same tokens as
        `backbone(images)`, and shares no variable with it.

    Raises:
        ValueError: If KerasHub is not installed, the backbone has settings that
            `MAEEncoder` lacks, or a variable on one side has none on the other.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
    try:
        restored = from_keras_hub(to_keras_hub(encoder))
    except ValueError as error:
        assert "keras-hub" in str(error)  # it is not installed
    else:
        assert restored.grid == encoder.grid
    ```
    """
    keras_hub = _import_keras_hub()
    _check_type(backbone, "backbone", keras_hub.models.ViTBackbone)
    _check_settings(
        vars(backbone), _THEIRS_FIXED, "MAEEncoder does not support this backbone"
    )
    *image_size, num_channels = backbone.image_shape
    encoder = MAEEncoder(
        image_size=image_size,
        num_channels=num_channels,
        dtype=backbone.dtype_policy,
        **{ours: getattr(backbone, theirs) for ours, theirs in _SIZES.items()},
    )
    for ours, theirs in _pair_variables(encoder, backbone):
        shape = (*ours.shape[:-1], -1)
        values = [ops.convert_to_numpy(variable).reshape(shape) for variable in theirs]
        ours.assign(np.concatenate(values, axis=-1))
    return encoder


def _import_keras_hub():
    try:
        import keras_hub
    except ImportError as error:
        raise ValueError(
            "KerasHub is not installed: pip install 'keras-mae[keras-hub]'"
        ) from error
    return keras_hub


def _check_type(model, name, kind):
    if not isinstance(model, kind):
        raise ValueError(
            f"{name} must be a {kind.__name__}. Received: {type(model).__name__}"
        )


def _check_settings(config, fixed, title):
    """Raises one error that lists the unsupported settings."""
    raise_problems(
        title,
        [
            f"{name} must be {value!r}. Received: {config[name]!r}"
            for name, value in sorted(fixed.items())
            # a version without the setting behaves as `value` says
            if config.get(name, value) != value
        ],
    )


def _rows(depth):
    """Lists our variables' paths, each with the paths of KerasHub's that it holds."""
    rows = [(f"encoder.{ours}", [theirs]) for ours, theirs in _OUTSIDE]
    for index in range(depth):
        root = f"vit_encoder/transformer_block_{index + 1}"
        rows += [
            (
                f"encoder.blocks.{index}.{layer}.{variable}",
                [f"{root}/{name}/{variable}" for name in names],
            )
            for layer, names, variables in _BLOCK
            for variable in variables
        ]
    return rows


def _pair_variables(encoder, backbone):
    """Pairs our variables with those of KerasHub, and raises if one is left over."""
    rows = _rows(len(encoder.blocks))
    theirs = {variable.path: variable for variable in backbone.weights}
    problems = key_differences([key for _, keys in rows for key in keys], theirs)
    ours = [find_variable(encoder, path) for path, _ in rows]
    paired = {id(variable) for variable in ours}
    problems += sorted(
        f"variable without a key: {variable.path} {tuple(variable.shape)}"
        for variable in encoder.weights
        if id(variable) not in paired
    )
    raise_problems("Encoder and ViTBackbone don't fit", problems)
    return [
        (variable, [theirs[key] for key in keys])
        for variable, (_, keys) in zip(ours, rows, strict=True)
    ]
