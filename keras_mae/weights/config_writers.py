"""Writes a model's settings as other libraries' `config.json` and arguments."""

from collections.abc import Iterable, Mapping
from typing import Any

import keras

from keras_mae.ops.patches import grid_shape
from keras_mae.presets import SHARED
from keras_mae.weights.config_readers import (
    FACEBOOK_ARGS,
    FACEBOOK_EPSILON,
    HUGGINGFACE,
    HUGGINGFACE_MAE,
    activations,
    mmengine_settings,
    num_heads_of_preset,
)
from keras_mae.weights.key_mapping import SOLO_LEARN
from keras_mae.weights.state_dict import contents_of, sizes_of

# formats of weights alone -> settings that are read as the library fixes them
_WEIGHTS_ALONE: dict[str, dict[str, Any]] = {
    "mmpretrain": {},
    "solo-learn": dict(SOLO_LEARN.settings),
    "lightly": {},
}


def to_huggingface(model: keras.Model) -> dict[str, Any]:
    """Writes transformers' `config.json`."""
    sizes, parts = sizes_of(model), contents_of(model).parts
    _check_alike(sizes, "decoder" in parts)
    _check_square(sizes)
    if "norm" not in parts or "probe" in parts:
        mean = "head_norm" in parts and "probe" not in parts
        raise ValueError(
            "format='huggingface' needs a classifier with pooling='cls' and without "
            "batch_norm, or an encoder with a final norm; try "
            f"{'timm or facebook' if mean else 'facebook'}"
        )
    ours = sizes["activation"]
    names = [theirs for theirs, one in activations().items() if one == ours]
    if not names:
        raise ValueError(
            f"activation must be one of {', '.join(activations())}. "
            f"Received: {sizes['activation']}"
        )
    sizes["activation"] = names[0]
    for name in ("image_size", "patch_size"):
        sizes[name] = sizes[name][0]
    config = {theirs: sizes[ours] for ours, (theirs, _) in HUGGINGFACE.items()}
    config["model_type"] = "vit" if "head" in parts else "vit_mae"
    kind = "ViTForImageClassification" if "head" in parts else "ViTMAEModel"
    if "decoder" in parts:
        kind = "ViTMAEForPreTraining"
        for ours, (theirs, _) in HUGGINGFACE_MAE.items():
            config[theirs] = sizes[ours]
    if "head" in parts:
        numbers = [f"LABEL_{index}" for index in range(model.num_classes)]
        labels = dict(enumerate(model.class_names or numbers))
        config["id2label"] = {str(index): name for index, name in labels.items()}
        config["label2id"] = {name: index for index, name in labels.items()}
    return {**config, "architectures": [kind]}


def to_timm(model: keras.Model) -> tuple[dict[str, Any], list[str]]:
    """Writes timm's `config.json`, and notes on what timm does differently."""
    sizes, parts = sizes_of(model), contents_of(model).parts
    notes = _check_fixed(sizes, ["activation"])
    width, mlp_dim = sizes["hidden_dim"], sizes["mlp_dim"]
    ratio = mlp_dim / width
    if int(width * ratio) != mlp_dim:  # timm rounds down
        ratio = (mlp_dim + 0.5) / width
    classes = model.num_classes if "head" in parts else 0
    pool = "avg" if "head_norm" in parts else "token"
    args = {
        "img_size": sizes["image_size"],
        "patch_size": sizes["patch_size"],
        "in_chans": sizes["num_channels"],
        "embed_dim": width,
        "depth": sizes["depth"],
        "num_heads": sizes["num_heads"],
        "mlp_ratio": ratio,
        "qkv_bias": sizes["qkv_bias"],
        "global_pool": pool,
    }
    card = {
        "input_size": [sizes["num_channels"], *sizes["image_size"]],
        "fixed_input_size": True,
        "num_classes": classes,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
    }
    if "head" in parts and model.class_names:
        card["label_names"] = list(model.class_names)
    config = {
        # any of timm's plain Vision Transformers, shaped by model_args
        "architecture": "vit_base_patch16_224",
        "num_classes": classes,
        "num_features": width,
        "global_pool": pool,
        "model_args": args,
        "pretrained_cfg": card,
    }
    return config, notes


def timm_images(processor: Any) -> dict[str, Any]:
    """Writes what timm's `pretrained_cfg` says of images, all that this one does."""
    return {
        "mean": list(processor.image_mean),
        "std": list(processor.image_std),
        "interpolation": processor.resample,
        # resized whole
        "crop_pct": 1.0,
        "crop_mode": "squash",
    }


def to_facebook(
    model: keras.Model, fixed: Iterable[tuple[str, Any]] = ()
) -> tuple[Any, list[str]]:
    """Writes the arguments in facebook's file, and notes, as `to_timm`."""
    sizes = sizes_of(model)
    notes = _check_fixed(sizes, ["activation", "qkv_bias"])
    if "decoder_hidden_dim" in sizes:
        alike = dict(sizes)
        # what that library has no setting for
        for name, value in fixed:
            alike[name] = sizes[name.removeprefix("decoder_")]
            if sizes[name] != value:
                notes.append(f"{name} is {sizes[name]}; that library uses {value}")
        _check_alike(alike, True)
    args = {
        theirs: sizes[ours]
        for ours, (theirs, _) in FACEBOOK_ARGS.items()
        if ours in sizes
    }
    return args, notes


def to_mmengine(sizes: Mapping[str, Any]) -> str:
    """Writes what no shape tells as mmpretrain's configuration, a Python source."""
    arch = {
        "embed_dims": sizes["hidden_dim"],
        "num_layers": sizes["depth"],
        "num_heads": sizes["num_heads"],
        "feedforward_channels": sizes["mlp_dim"],
    }
    backbone = f"arch=dict({', '.join(f'{key}={arch[key]}' for key in arch)})"
    if "mask_ratio" not in sizes:
        return f"model = dict(backbone=dict({backbone}))"
    return (
        f"model = dict(backbone=dict({backbone}, mask_ratio={sizes['mask_ratio']}), "
        f"neck=dict(decoder_num_heads={sizes['decoder_num_heads']}), "
        f"head=dict(norm_pix={sizes['norm_pix_loss']}))"
    )


def not_stored(sizes: Mapping[str, Any], format: str) -> dict[str, Any]:
    """Returns the settings that a format doesn't store, and a read takes otherwise."""
    if format not in _WEIGHTS_ALONE:
        return {}
    epsilons = ("layer_norm_epsilon", "decoder_layer_norm_epsilon")
    rows, columns = grid_shape(sizes["image_size"], sizes["patch_size"])
    taken = {
        # a square
        "image_size": sizes["image_size"] if rows == columns else None,
        "num_heads": num_heads_of_preset(sizes)[0],
        "decoder_num_heads": num_heads_of_preset(sizes, "decoder_")[0],
        **{name: HUGGINGFACE_MAE[name][1] for name in ("mask_ratio", "norm_pix_loss")},
        **dict.fromkeys(epsilons, FACEBOOK_EPSILON),
        **_WEIGHTS_ALONE[format],
    }
    if format == "mmpretrain":
        taken |= mmengine_settings({"cfg": to_mmengine(sizes)})
    return {n: sizes[n] for n in taken if n in sizes and sizes[n] != taken[n]}


def _check_alike(sizes, decoder):
    """Raises where encoder and decoder differ in what the format stores once."""
    names = {*SHARED} - {"dtype", "kernel_initializer", "rematerialize"}
    for name in sorted(names) if decoder else ():
        if sizes[name] != sizes[f"decoder_{name}"]:
            raise ValueError(
                f"{name} must be the same in encoder and decoder. Received: "
                f"{sizes[name]} and {sizes[f'decoder_{name}']}"
            )


def _check_square(sizes):
    for name in ("image_size", "patch_size"):
        if len(set(sizes[name])) > 1:
            raise ValueError(
                f"transformers needs a square {name}. Received: {sizes[name]}"
            )


def _check_fixed(sizes, names):
    """Raises on settings that the library hard-codes differently; notes epsilon."""
    fixed = {"activation": "gelu", "qkv_bias": True}
    for name in names:
        if sizes[name] != fixed[name]:
            raise ValueError(
                f"{name} must be {fixed[name]} in this format. Received: {sizes[name]}"
            )
    epsilon = sizes["layer_norm_epsilon"]
    if epsilon == FACEBOOK_EPSILON:
        return []
    return [f"layer_norm_epsilon is {epsilon}; that library uses {FACEBOOK_EPSILON}"]
