"""What other libraries say of a model beside its weights, in our words."""

import math
import re

import keras

from keras_mae.layers.transformer import gelu_tanh
from keras_mae.patches import as_pair
from keras_mae.presets import PRESETS
from keras_mae.weights.checkpoint import PortError

# ours -> Hugging Face's, and what an absent one means there
HUGGINGFACE = {
    "image_size": ("image_size", 224),
    "patch_size": ("patch_size", 16),
    "num_channels": ("num_channels", 3),
    "hidden_dim": ("hidden_size", 768),
    "depth": ("num_hidden_layers", 12),
    "num_heads": ("num_attention_heads", 12),
    "mlp_dim": ("intermediate_size", 3072),
    "activation": ("hidden_act", "gelu"),
    "dropout_rate": ("hidden_dropout_prob", 0.0),
    "attention_dropout_rate": ("attention_probs_dropout_prob", 0.0),
    "initializer_range": ("initializer_range", 0.02),
    "layer_norm_epsilon": ("layer_norm_eps", 1e-12),
    "qkv_bias": ("qkv_bias", True),
}
HUGGINGFACE_MAE = {
    "decoder_hidden_dim": ("decoder_hidden_size", 512),
    "decoder_depth": ("decoder_num_hidden_layers", 8),
    "decoder_num_heads": ("decoder_num_attention_heads", 16),
    "decoder_mlp_dim": ("decoder_intermediate_size", 2048),
    "mask_ratio": ("mask_ratio", 0.75),
    "norm_pix_loss": ("norm_pix_loss", False),
}
# theirs -> ours; the first that means ours is written
ACTIVATIONS = {
    theirs: keras.activations.serialize(keras.activations.get(ours))
    for theirs, ours in {
        "gelu": "gelu",
        "gelu_pytorch_tanh": gelu_tanh,
        "gelu_new": gelu_tanh,
        "gelu_fast": gelu_tanh,
        "relu": "relu",
        "silu": "silu",
        "swish": "silu",
    }.items()
}
# what the training arguments in a file may say, ours -> theirs
FACEBOOK_ARGS = {
    "image_size": "input_size",
    "mask_ratio": "mask_ratio",
    "norm_pix_loss": "norm_pix_loss",
    "num_heads": "num_heads",
    "decoder_num_heads": "decoder_num_heads",
    "layer_norm_epsilon": "layer_norm_epsilon",
}
# the published files whose names, and nothing else, tell the target
_PUBLISHED_TARGETS = {
    r"mae_visualize_vit_\w+\.pth": False,
    r"mae_pretrain_vit_\w+_full\.pth": True,
}
# what the code of facebook and timm fixes
FACEBOOK_EPSILON = 1e-6
_TIMM_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
_TIMM_ARGS = {
    "img_size",
    "patch_size",
    "in_chans",
    "num_classes",
    "global_pool",
    "embed_dim",
    "depth",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "class_token",
    "fc_norm",
    "dynamic_img_size",
    "strict_img_size",
    "drop_rate",
    "drop_path_rate",
}


def told_sizes(checkpoint, description):
    """Collects what configuration, training arguments and file name tell.

    Args:
        checkpoint: A `Checkpoint`.
        description: Its `Description`.

    Returns:
        A dict by our names.

    Raises:
        PortError: If a configuration is of another model, or contradicts a shape.
    """
    config, family = checkpoint.config or {}, description.naming.family
    said_by = checkpoint.config_file
    if family == "facebook":
        told = {"layer_norm_epsilon": FACEBOOK_EPSILON}
        if "architecture" in config:
            told.update(_from_timm(config, description, said_by))
        told.update(_from_args(checkpoint.args))
        told.update(_from_name(checkpoint.source))
    elif "model_type" in config:
        told = _from_huggingface(config, said_by)
    else:
        # one without a configuration was built with the library's defaults
        told = {
            name: HUGGINGFACE[name][1] for name in ("layer_norm_epsilon", "activation")
        }
    _compare(told, description, said_by or checkpoint.source)
    return told


def _from_huggingface(config, path):
    kind = config["model_type"]
    if kind not in ("vit_mae", "vit"):
        raise PortError(f"{path}: model_type must be vit_mae or vit. Received: {kind}")
    table = {**HUGGINGFACE, **(HUGGINGFACE_MAE if kind == "vit_mae" else {})}
    told = {ours: config.get(*theirs) for ours, theirs in table.items()}
    for name in ("image_size", "patch_size"):
        told[name] = as_pair(told[name], f"{path}: {name}")
    if told["activation"] not in ACTIVATIONS:
        raise PortError(
            f"{path}: hidden_act must be one of {', '.join(ACTIVATIONS)}. "
            f"Received: {told['activation']}"
        )
    told["activation"] = ACTIVATIONS[told["activation"]]
    return told


def _from_timm(config, description, path):
    args = config.get("model_args") or {}
    unknown = sorted(set(args) - _TIMM_ARGS)
    if unknown:
        raise PortError(f"{path}: model_args not known here: {', '.join(unknown)}")
    card = config.get("pretrained_cfg") or config
    pool = args.get("global_pool", config.get("global_pool", "token"))
    parts = description.contents.parts
    if "head" in parts and (pool == "avg") != ("head_norm" in parts):
        raise PortError(
            f"{path}: global_pool must be token, or avg with an fc_norm. Received: "
            f"{pool}, {'with' if 'head_norm' in parts else 'without'} fc_norm"
        )
    told = {}
    size = args.get("img_size") or (card.get("input_size") or [None])[1:]
    if size:
        told["image_size"] = as_pair(size, f"{path}: image size")
    match = re.match(r"vit_([a-z]+)_patch", config["architecture"])
    heads = args.get("num_heads", _TIMM_HEADS.get(match[1]) if match else None)
    if heads:
        told["num_heads"] = heads
    return told


def _from_args(args):
    return {
        ours: args[theirs]
        for ours, theirs in FACEBOOK_ARGS.items()
        if isinstance(args.get(theirs), (bool, int, float, list, tuple))
    }


def _from_name(source):
    for pattern, norm_pix_loss in _PUBLISHED_TARGETS.items():
        if re.search(f"{pattern}$", source):
            return {"norm_pix_loss": norm_pix_loss}
    return {}


def _compare(told, description, said_by):
    """Raises where what is told and what the shapes tell differ."""
    problems = []
    for name in sorted(set(told) & set(description.sizes)):
        wanted, found = told[name], description.sizes[name]
        if wanted != found:
            key = description.evidence.get(name, "the keys")
            shape = description.tensors[key].shape if key in description.tensors else ""
            problems.append(f"{name} is {wanted}, but {key} {shape} tells {found}")
    if problems:
        raise PortError(
            f"{said_by} contradicts the weights:\n  " + "\n  ".join(problems)
        )


def preset_like(sizes, prefix=""):
    """Finds the number of heads that the presets have at the same sizes.

    Args:
        sizes: Dict by our names.
        prefix: `"decoder_"` for the decoder's.

    Returns:
        A tuple: the number of heads and the preset's name, or two `None`.

    Example:

    ```python
    sizes = {"hidden_dim": 1280, "depth": 32, "mlp_dim": 5120}
    assert preset_like(sizes) == (16, "mae_huge")
    ```
    """
    names = [prefix + name for name in ("hidden_dim", "depth", "mlp_dim")]
    for preset, config in PRESETS.items():
        if all(config[name] == sizes.get(name) for name in names):
            return config[f"{prefix}num_heads"], preset
    return None, None


def find_image_size(sizes, wanted, source):
    """Finds the image size that a file's positions are for.

    Args:
        sizes: Dict by our names, with `positions` and `patch_size`.
        wanted: The image size that the user asks for, or `None`.
        source: What the error names.

    Returns:
        Pair `(height, width)`: as told, else as wanted where the count of positions
        fits, else a square.

    Raises:
        PortError: If the count of positions fits none.
    """
    height, width = sizes["patch_size"]
    count = sizes["positions"] - 1
    side = math.isqrt(count)
    told = sizes.get("image_size")
    choices = [told] if told else [wanted, (side * height, side * width)]
    for size in filter(None, choices):
        size = as_pair(size, "image_size")
        grid = size[0] / height, size[1] / width
        if grid[0] * grid[1] == count and grid[0].is_integer():
            return size
    raise PortError(
        f"{source}: {count} positions of patches {height}x{width} must be those of an "
        f"image of {told or 'equal sides'}; where the image was not square, state "
        "image_size"
    )
