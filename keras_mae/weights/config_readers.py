"""Reads other libraries' `config.json` and training arguments, in our names."""

import functools
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras

from keras_mae.ops.activations import gelu_tanh
from keras_mae.ops.patches import as_pair
from keras_mae.presets import PRESETS
from keras_mae.utils.text import shorten
from keras_mae.utils.typing import Size
from keras_mae.weights.checkpoint import Checkpoint, PortError, raise_problems
from keras_mae.weights.format_detection import (
    Description,
    count_parameters,
    count_values,
)
from keras_mae.weights.published import PUBLISHED

# ours -> Hugging Face's, and what an absent one means there
HUGGINGFACE: dict[str, tuple[str, Any]] = {
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
# of these, what no shape tells and weights without a configuration need
_ASSUMED = ("layer_norm_epsilon", "activation")
HUGGINGFACE_MAE: dict[str, tuple[str, Any]] = {
    "decoder_hidden_dim": ("decoder_hidden_size", 512),
    "decoder_depth": ("decoder_num_hidden_layers", 8),
    "decoder_num_heads": ("decoder_num_attention_heads", 16),
    "decoder_mlp_dim": ("decoder_intermediate_size", 2048),
    "mask_ratio": ("mask_ratio", 0.75),
    "norm_pix_loss": ("norm_pix_loss", False),
}
# theirs -> ours; the first of several is the one that is written
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": gelu_tanh,
    "gelu_new": gelu_tanh,
    "gelu_fast": gelu_tanh,
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}
# training arguments in facebook's files, ours -> theirs, and an example
FACEBOOK_ARGS = {
    "image_size": ("input_size", 224),
    "mask_ratio": ("mask_ratio", 0.75),
    "norm_pix_loss": ("norm_pix_loss", True),
    "num_heads": ("num_heads", 12),
    "decoder_num_heads": ("decoder_num_heads", 16),
    "layer_norm_epsilon": ("layer_norm_epsilon", 1e-6),
}
# facebook's arguments as mmengine's configuration has them: a pattern and its type
_MMENGINE: dict[str, tuple[str, Callable[[str], Any]]] = {
    "norm_pix_loss": (r"norm_pix(?:_loss)? *= *(True|False)", "True".__eq__),
    "mask_ratio": (r"mask_ratio *= *(0?\.\d{1,9})", float),
    "decoder_num_heads": (r"decoder_num_heads *= *(\d{1,4})", int),
    "num_heads": (r"arch *= *dict\([^()]*\bnum_heads *= *(\d{1,4})", int),
}
# norm_pix_loss of the published files, where only the file's name tells it
_NORM_PIX_LOSS_BY_FILE = {
    r"mae_visualize_vit_\w+\.pth": False,
    r"mae_pretrain_vit_\w+_full\.pth": True,
}
# JSON has ints of any length
_LARGEST = sys.float_info.max
# beyond any known model: patches of an image whose positions are computed, and the
# blocks and parameters of a decoder that is drawn
_MOST_PATCHES = 2**16
_DEEPEST_DECODER, _LARGEST_DECODER = 256, 2**28
# hard-coded by facebook and timm
FACEBOOK_EPSILON = 1e-6
_TIMM_HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
_TIMM_ARGS = {
    "in_chans": ("num_channels", 3),
    "embed_dim": ("hidden_dim", 768),
    "depth": ("depth", 12),
    "num_heads": ("num_heads", 12),
    "qkv_bias": ("qkv_bias", True),
    # no name of ours: without effect, or handled separately
    **dict.fromkeys(
        (
            "img_size",
            "patch_size",
            "mlp_ratio",
            "class_token",
            "global_pool",
            "num_classes",
            "fc_norm",
            "dynamic_img_size",
            "strict_img_size",
            "drop_rate",
            "drop_path_rate",
        ),
        (None, None),
    ),
}


@functools.cache
def activations() -> dict[str, Any]:
    """Maps other libraries' activation names to ours, serialized."""
    # a function: to serialize, Keras imports TensorFlow on every backend
    return {
        theirs: keras.activations.serialize(keras.activations.get(ours))
        for theirs, ours in _ACTIVATIONS.items()
    }


def is_timm(config: Mapping[str, Any] | None) -> bool:
    """Whether a configuration is of a Vision Transformer of timm."""
    return str((config or {}).get("architecture")).startswith("vit_")


def read_settings(checkpoint: Checkpoint, description: Description) -> dict[str, Any]:
    """Collects settings from config.json, training arguments and file name."""
    config, family = checkpoint.config or {}, description.naming.family
    path = checkpoint.config_file
    if family != "huggingface":
        settings: dict[str, Any] = {"layer_norm_epsilon": FACEBOOK_EPSILON}
        settings.update(description.naming.settings)
        if is_timm(config):
            settings.update(_from_timm(config, description, path))
        settings.update(_from_name(checkpoint.file))
        settings.update(_from_args(checkpoint))
    elif "model_type" in config:
        settings = _from_huggingface(config, path)
    else:
        # one without a configuration was built with the library's defaults
        settings = {name: HUGGINGFACE[name][1] for name in _ASSUMED}
    _check_shapes_agree(settings, description, path or checkpoint.source)
    _check_extent(settings, description, path or checkpoint.source)
    return settings


def assumptions(checkpoint: Checkpoint, description: Description) -> list[str]:
    """Returns notes on settings that nothing beside the weights tells."""
    stated = "model_type" in (checkpoint.config or {})
    if description.naming.family != "huggingface" or stated:
        return []
    values = (f"{name} {HUGGINGFACE[name][1]}" for name in _ASSUMED)
    return [
        f"without a configuration, taken as transformers has it: {', '.join(values)}"
    ]


def _typed(value, like, name):
    """Checks that a value has the type of an example, and is in range."""
    number = not isinstance(value, bool) and isinstance(value, (int, float))
    kind, fits = {
        bool: ("a bool", isinstance(value, bool)),
        int: ("a positive int", number and isinstance(value, int) and value > 0),
        float: ("a number, 0 or more", number and 0 <= value <= _LARGEST),
        str: ("a string", isinstance(value, str)),
    }[type(like)]
    if not fits:
        raise PortError(f"{name} must be {kind}. Received: {shorten(repr(value))}")
    return value


def _size(value, name):
    try:
        return as_pair(value, name)
    except ValueError as error:
        raise PortError(shorten(str(error))) from error


def _from_huggingface(config, path):
    kind = config["model_type"]
    if kind not in ("vit_mae", "vit"):
        raise PortError(
            f"{path}: model_type must be vit_mae or vit. Received: {shorten(str(kind))}"
        )
    table = {**HUGGINGFACE, **(HUGGINGFACE_MAE if kind == "vit_mae" else {})}
    settings = {}
    for ours, (theirs, default) in table.items():
        value, name = config.get(theirs, default), f"{path}: {theirs}"
        sized = ours in ("image_size", "patch_size")
        settings[ours] = _size(value, name) if sized else _typed(value, default, name)
    if settings["activation"] not in activations():
        raise PortError(
            f"{path}: hidden_act must be one of {', '.join(_ACTIVATIONS)}. "
            f"Received: {shorten(settings['activation'])}"
        )
    settings["activation"] = activations()[settings["activation"]]
    return settings


def class_names(
    config: Mapping[str, Any] | None, num_classes: int
) -> tuple[str, ...] | None:
    """Returns a configuration's names of the classes; `None` for none, or numbers."""
    config = config or {}
    card = config.get("pretrained_cfg")
    names = config.get("label_names") or (
        card.get("label_names") if isinstance(card, dict) else None
    )
    labels = config.get("id2label")
    # those of other classes are the library's default, which says nothing of these
    if isinstance(labels, dict) and len(labels) == num_classes:
        names = [labels.get(str(index)) for index in range(num_classes)]
        if names == [f"LABEL_{index}" for index in range(num_classes)]:
            return None
    if not isinstance(names, list) or len(names) != num_classes:
        return None
    return tuple(names) if all(isinstance(name, str) for name in names) else None


def _from_timm(config, description, path):
    args, card = config.get("model_args") or {}, config.get("pretrained_cfg") or config
    for name, value in (("model_args", args), ("pretrained_cfg", card)):
        if not isinstance(value, dict):
            raise PortError(
                f"{path}: {name} must be an object. Received: {shorten(repr(value))}"
            )
    unknown = sorted(set(args) - _TIMM_ARGS.keys())
    if unknown:
        names = shorten(", ".join(unknown))
        raise PortError(f"{path}: unsupported model_args: {names}")
    _check_pooling(
        args.get("global_pool", config.get("global_pool")), description, path
    )
    settings = {}
    for theirs, (ours, like) in _TIMM_ARGS.items():
        if ours and args.get(theirs) is not None:
            settings[ours] = _typed(args[theirs], like, f"{path}: {theirs}")
    if args.get("class_token") is False:
        raise PortError(f"{path}: class_token must be true")
    if "mlp_ratio" in args:
        ratio = _typed(args["mlp_ratio"], 4.0, f"{path}: mlp_ratio")
        width = description.sizes["hidden_dim"] * ratio
        settings["mlp_dim"] = int(min(width, _LARGEST))
    sizes = {"image_size": args.get("img_size"), "patch_size": args.get("patch_size")}
    if sizes["image_size"] is None and isinstance(card.get("input_size"), list):
        sizes["image_size"] = card["input_size"][1:]
    for name, value in sizes.items():
        if value is not None:
            settings[name] = _size(value, f"{path}: {name}")
    match = re.match(r"vit_([a-z]+)_patch", config["architecture"])
    if match and match[1] in _TIMM_HEADS:
        settings.setdefault("num_heads", _TIMM_HEADS[match[1]])
    return settings


def _check_pooling(pool, description, path):
    """Raises where timm's global_pool contradicts the keys."""
    parts = description.contents.parts
    if "head" in parts and pool and (pool == "avg") != ("head_norm" in parts):
        norm = "with" if "head_norm" in parts else "without"
        raise PortError(
            f"{path}: global_pool must be token, or avg with an fc_norm. Received: "
            f"{shorten(str(pool))}, {norm} fc_norm"
        )


def _from_args(checkpoint):
    args, place = checkpoint.args, checkpoint.file or checkpoint.source
    settings = {}
    for ours, (theirs, like) in FACEBOOK_ARGS.items():
        if args.get(theirs) is not None:
            value, name = args[theirs], f"{place}: args.{theirs}"
            sized = ours == "image_size"
            if sized and isinstance(value, (list, tuple)) and len(value) == 3:
                value = value[1:]  # timm's has the channels first
            settings[ours] = _size(value, name) if sized else _typed(value, like, name)
    return settings


def mmengine_settings(meta: Any) -> dict[str, Any]:
    """Finds what the shapes don't tell in mmengine's configuration, a Python source."""
    meta = meta if isinstance(meta, Mapping) else {}
    text = meta.get("cfg", meta.get("config"))
    settings: dict[str, Any] = {}
    for name, (pattern, convert) in _MMENGINE.items() if isinstance(text, str) else ():
        values = set(re.findall(rf"\b{pattern}\b", text))
        if len(values) == 1:  # else the source has several models
            settings[name] = convert(values.pop())
    return settings


def _from_name(path):
    for pattern, norm_pix_loss in _NORM_PIX_LOSS_BY_FILE.items():
        if re.fullmatch(pattern, Path(path).name):
            return {"norm_pix_loss": norm_pix_loss}
    return {}


def _check_shapes_agree(settings, description, place):
    """Raises where settings and the tensors' shapes differ."""
    problems = []
    for name in sorted(set(settings) & set(description.sizes)):
        wanted, found = settings[name], description.sizes[name]
        if wanted != found:
            key = description.evidence.get(name, "the keys")
            shape = description.tensors[key].shape if key in description.tensors else ""
            problems.append(f"{name} is {wanted!r}, but {key} {shape} gives {found!r}")
    raise_problems(f"{place} contradicts the weights", problems)


def _check_extent(settings, description, place):
    """Raises where sizes that no tensor confirms would take far too much memory."""
    sizes = {**settings, **description.sizes}
    if "positions" not in sizes and "image_size" in sizes:  # they are computed
        image, patch = sizes["image_size"], sizes["patch_size"]
        sizes["positions"] = (image[0] // patch[0]) * (image[1] // patch[1])
        if sizes["positions"] > _MOST_PATCHES:
            raise PortError(
                f"{place}: image_size must be one of at most {_MOST_PATCHES} patches. "
                f"Received: {shorten(str(image))}, in patches of {patch}"
            )
    if "decoder" in description.contents.parts or "decoder_depth" not in settings:
        return
    most = max(_LARGEST_DECODER, 2 * count_values(description.tensors))
    wanted = count_parameters(sizes, "decoder_")
    if sizes["decoder_depth"] > _DEEPEST_DECODER or wanted > most:
        names = ("decoder_depth", "decoder_hidden_dim", "decoder_mlp_dim")
        raise PortError(
            f"{place} describes a decoder that the checkpoint does not contain; it may "
            f"have at most {_DEEPEST_DECODER} blocks and {most} parameters. Received: "
            + shorten(", ".join(f"{name}={sizes[name]}" for name in names))
        )


def num_heads_of_preset(
    sizes: Mapping[str, Any], prefix: str = ""
) -> tuple[int, str] | tuple[None, None]:
    """Returns the number of heads, and the name, of the paper's model that fits."""
    names = [prefix + name for name in ("hidden_dim", "depth", "mlp_dim")]
    # of other sizes, models differ: a ViT-S has 6 heads here, and elsewhere 12
    for preset in PUBLISHED:
        config = PRESETS[preset]
        if all(config[name] == sizes.get(name) for name in names):
            return config[f"{prefix}num_heads"], preset
    return None, None


def find_image_size(
    sizes: Mapping[str, Any],
    wanted: Size | None,
    source: str,
    stated: Size | None = None,
) -> tuple[tuple[int, int], str | None]:
    """Finds the image size of a file's positions, and a note where it is assumed."""
    height, width = sizes["patch_size"]
    if "positions" not in sizes:  # they are computed, for any size
        size = stated or sizes.get("image_size") or wanted
        if size is None:
            raise PortError(f"{source} has no positions; pass image_size")
        return as_pair(size, "image_size"), None
    count = sizes["positions"] - 1
    side = math.isqrt(count)
    configured = sizes.get("image_size")
    square = None if configured else (side * height, side * width)
    choices = {"": configured, "the image_size wanted": wanted, "a square": square}
    if stated is not None:
        choices = {"": stated}
    for assumed, choice in choices.items():
        if choice is None:
            continue
        size = as_pair(choice, "image_size" if stated is None else "source_image_size")
        if _count_patches(size, height, width) == count:
            note = (
                f"positions are taken for those of {size[0]}x{size[1]} pixels, "
                f"{assumed}; source_image_size says otherwise"
            )
            return size, note if assumed else None
    image = f"image_size {configured}" if configured else "a square image"
    image = f"source_image_size {stated}" if stated is not None else image
    raise PortError(
        f"{source}: {count} positions of patches {height}x{width} don't fit {image}; "
        "pass source_image_size"
    )


def _count_patches(size, height, width):
    """Counts the patches of an image; `None` where they don't fill it."""
    rows, columns = size[0] // height, size[1] // width
    return rows * columns if size == (rows * height, columns * width) else None
