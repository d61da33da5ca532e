"""`save_pretrained`: writes a folder for another library."""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_mae.utils.files import atomic_write, make_folder
from keras_mae.utils.text import shorten
from keras_mae.utils.typing import PathLike
from keras_mae.weights import config_writers
from keras_mae.weights.checkpoint_reader import WEIGHT_FILES
from keras_mae.weights.format_detection import COUNTER
from keras_mae.weights.hub import CONFIG_FILE, read_json
from keras_mae.weights.key_mapping import (
    FACEBOOK,
    HUGGINGFACE,
    LIGHTLY,
    MMPRETRAIN,
    SOLO_LEARN,
)
from keras_mae.weights.report import PortReport
from keras_mae.weights.state_dict import (
    check_plain_weights,
    contents_of,
    export_weights,
    sizes_of,
)

# the configuration of a library that reads weights has one of them
_LIBRARY_KEYS = {"architectures", "architecture", "model_type"}
_SAFETENSORS = "model.safetensors"
_TORCH = "model.pth"


def save_pretrained(
    model: keras.Model,
    folder: PathLike,
    format: str = "huggingface",
    processor: Any = None,
) -> PortReport:
    """See `Pretrained.save_pretrained`; `processor` goes into timm's configuration."""
    if format not in _WRITERS:
        raise ValueError(
            f"format must be one of {', '.join(_WRITERS)}. Received: {format!r}"
        )
    check_plain_weights(model, "save_pretrained")
    name, prepare, write = _WRITERS[format]
    folder = Path(folder).expanduser()
    _check_folder(folder, name)
    state, config, left_out, notes = prepare(model)
    missing = config_writers.not_stored(sizes_of(model), format)
    if missing:
        listed = ", ".join(f"{key} {value}" for key, value in missing.items())
        notes = [*notes, f"not stored: {listed}; pass them to from_pretrained"]
    if format == "timm" and processor is not None:
        config["pretrained_cfg"] |= config_writers.timm_images(processor)
    make_folder(folder)
    write(state, config, folder)
    target = None
    if hasattr(model, "norm_pix_loss") and not left_out:
        target = "normalized pixels" if model.norm_pix_loss else "pixels"
    return PortReport(
        place=str(folder / name),
        format=format,
        filled=len(state),
        target=target,
        left_out=tuple(left_out),
        notes=tuple(notes),
    )


def _check_folder(folder, name):
    """Raises where a folder holds weights by another name, or a run or a preset."""
    others = [other for other in WEIGHT_FILES if (folder / other).exists()]
    if set(others) - {name}:
        raise ValueError(
            f"{folder} must not hold other weights. Received: {', '.join(others)}"
        )
    config = folder / CONFIG_FILE
    found = read_json(config) if config.is_file() else None
    if found is not None and not _LIBRARY_KEYS & found.keys():
        raise ValueError(
            f"{folder} must not hold a run or a preset, whose {CONFIG_FILE} is not a "
            "library's: give another folder. Received: one with "
            f"{shorten(', '.join(sorted(found)) or 'nothing')}"
        )


def _prepare_huggingface(model):
    naming = HUGGINGFACE
    if not hasattr(model, "encoder"):
        naming = HUGGINGFACE._replace(prefix="")
    config = config_writers.to_huggingface(model)
    return export_weights(model, naming), config, (), ()


def _prepare_timm(model):
    parts = contents_of(model).parts
    if "probe" in parts or not {"norm", "head_norm"} & parts:
        raise ValueError(
            "timm's models have a final norm and a linear head; try facebook. "
            f"Received: {', '.join(sorted(parts)) or 'an encoder without a final norm'}"
        )
    left_out = ()
    if "decoder" in parts:
        left_out = [weight.path for weight in model.decoder.weights]
        model = model.encoder
    config, notes = config_writers.to_timm(model)
    return export_weights(model, FACEBOOK), config, left_out, notes


def _prepare_facebook(model):
    _import_torch()
    args, notes = config_writers.to_facebook(model)
    state = export_weights(model, FACEBOOK)
    if "probe" in contents_of(model).parts:
        state[COUNTER] = np.zeros((), "int64")
    return state, {"args": args}, (), notes


def _prepare_mmpretrain(model):
    _import_torch()
    _, notes = config_writers.to_facebook(model)
    meta = {"cfg": config_writers.to_mmengine(sizes_of(model))}
    return export_weights(model, MMPRETRAIN), {"meta": meta}, (), notes


def _prepare_solo_learn(model):
    _import_torch()
    _check_no_head(model, "solo-learn")
    _, notes = config_writers.to_facebook(model, SOLO_LEARN.settings)
    return export_weights(model, SOLO_LEARN), {}, (), notes


def _prepare_lightly(model):
    _import_torch()
    _check_no_head(model, "lightly")
    _, notes = config_writers.to_facebook(model)
    state = export_weights(model, LIGHTLY)
    # its encoder has one that MAE doesn't use
    width = state["backbone.vit.cls_token"].shape[-1]
    state["backbone.mask_token"] = np.zeros((1, 1, width), "float32")
    return state, {}, (), notes


def _check_no_head(model, library):
    if hasattr(model, "head"):
        raise ValueError(
            f"{library} has no names for a classifier's head; save its encoder, or "
            "with format='facebook'"
        )


def _import_torch():
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            "this format needs PyTorch: pip install torch, or save with "
            "format='huggingface'"
        ) from error
    return torch


def _write_safetensors(state, config, folder):
    from safetensors.numpy import save_file

    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    with atomic_write(folder / _SAFETENSORS) as path:
        # the mark that transformers looks for
        save_file(state, path, metadata={"format": "pt"})
    with atomic_write(folder / CONFIG_FILE) as path:
        path.write_text(text)


def _write_torch(state, beside, folder, name="model"):
    torch = _import_torch()
    tensors = {}
    for key, value in state.items():
        # PyTorch doesn't take NumPy's bfloat16; float32 holds all of it
        wide = value.astype("float32") if value.dtype.name == "bfloat16" else value
        tensors[key] = torch.tensor(wide).to(getattr(torch, value.dtype.name))
    with atomic_write(folder / _TORCH) as path:
        torch.save({name: tensors, **beside}, path)


_write_state_dict = functools.partial(_write_torch, name="state_dict")


# format -> name of the weights file, function that prepares, function that writes
_WRITERS: dict[str, tuple[str, Callable[..., Any], Callable[..., Any]]] = {
    "huggingface": (_SAFETENSORS, _prepare_huggingface, _write_safetensors),
    "timm": (_SAFETENSORS, _prepare_timm, _write_safetensors),
    "facebook": (_TORCH, _prepare_facebook, _write_torch),
    "mmpretrain": (_TORCH, _prepare_mmpretrain, _write_state_dict),
    "solo-learn": (_TORCH, _prepare_solo_learn, _write_state_dict),
    "lightly": (_TORCH, _prepare_lightly, _write_state_dict),
}
FORMATS = tuple(_WRITERS)
