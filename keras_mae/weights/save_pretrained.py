"""`save_pretrained`: writes a folder for Hugging Face, timm or facebook's code."""

import json
from pathlib import Path

import keras
import numpy as np

from keras_mae.utils.files import atomic_write
from keras_mae.utils.typing import PathLike
from keras_mae.weights import config_writers
from keras_mae.weights.checkpoint_reader import CONFIG_FILE, WEIGHT_FILES
from keras_mae.weights.format_detection import COUNTER
from keras_mae.weights.key_mapping import FACEBOOK, HUGGINGFACE
from keras_mae.weights.report import PortReport
from keras_mae.weights.state_dict import contents_of, export_weights

_SAFETENSORS = "model.safetensors"
_TORCH = "model.pth"


def save_pretrained(
    model: keras.Model, folder: PathLike, format: str = "huggingface"
) -> PortReport:
    """See `Pretrained.save_pretrained`."""
    if format not in _WRITERS:
        raise ValueError(
            f"format must be one of {', '.join(_WRITERS)}. Received: {format!r}"
        )
    name, prepare, write = _WRITERS[format]
    folder = Path(folder).expanduser()
    others = [other for other in WEIGHT_FILES if (folder / other).exists()]
    if set(others) - {name}:
        raise ValueError(
            f"{folder} must not hold other weights. Received: {', '.join(others)}"
        )
    state, config, left_out, notes = prepare(model)
    folder.mkdir(parents=True, exist_ok=True)
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
            "timm's models have a final norm and a linear head. Received: "
            f"{', '.join(sorted(parts)) or 'an encoder without a final norm'}"
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
    return state, args, (), notes


def _import_torch():
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            "format='facebook' needs PyTorch: pip install torch, or save with "
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


def _write_torch(state, args, folder):
    torch = _import_torch()
    tensors = {}
    for key, value in state.items():
        # PyTorch doesn't take NumPy's bfloat16; float32 holds all of it
        wide = value.astype("float32") if value.dtype.name == "bfloat16" else value
        tensors[key] = torch.tensor(wide).to(getattr(torch, value.dtype.name))
    with atomic_write(folder / _TORCH) as path:
        torch.save({"model": tensors, "args": args}, path)


# format -> name of the weights file, function that prepares, function that writes
_WRITERS = {
    "huggingface": (_SAFETENSORS, _prepare_huggingface, _write_safetensors),
    "timm": (_SAFETENSORS, _prepare_timm, _write_safetensors),
    "facebook": (_TORCH, _prepare_facebook, _write_torch),
}
