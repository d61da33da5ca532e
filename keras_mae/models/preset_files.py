"""Presets in folders: a model's configuration and its Keras weights."""

import json
from pathlib import Path
from typing import Any

import keras

from keras_mae.utils.files import atomic_write
from keras_mae.utils.typing import PathLike
from keras_mae.weights.hub import read_json

CONFIG_NAME, WEIGHTS_NAME = "config.json", "model.weights.h5"
_PACKAGE = "keras_mae>"


def is_preset_folder(source: PathLike) -> bool:
    return (Path(source).expanduser() / CONFIG_NAME).is_file()


def save_to_preset(model: keras.Model, folder: PathLike) -> None:
    """Writes a model's configuration and weights into a folder."""
    folder = Path(folder).expanduser()
    if is_preset_folder(folder):
        _read_config(folder)  # another library's files stay what they are
    folder.mkdir(parents=True, exist_ok=True)
    config = keras.saving.serialize_keras_object(model)
    config = {key: config[key] for key in ("class_name", "registered_name", "config")}
    config["module"] = type(model).__module__
    with atomic_write(folder / WEIGHTS_NAME) as part:
        model.save_weights(part)
    with atomic_write(folder / CONFIG_NAME) as part:
        part.write_text(json.dumps(config, indent=2))


def load_preset(
    cls: type, folder: PathLike, load_weights: bool, overrides: dict[str, Any]
) -> keras.Model:
    """Builds what `save_to_preset` wrote; a new head takes `overrides`."""
    folder = Path(folder).expanduser()
    model = keras.saving.deserialize_keras_object(_read_config(folder))
    if load_weights:
        try:
            model.load_weights(folder / WEIGHTS_NAME)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{folder / WEIGHTS_NAME} can't be read: {error}") from (
                error
            )
    encoder = getattr(model, "encoder", model)
    if getattr(cls, "has_head", False) and not isinstance(model, cls):
        return cls(encoder, dtype=encoder.dtype_policy, **overrides)
    if overrides:
        raise ValueError(
            f"A preset in a folder must be built as it was saved. Received: {overrides}"
        )
    for part in (model, encoder):
        if isinstance(part, cls):
            return part
    raise ValueError(
        f"{folder} must hold a {cls.__name__}. Received: {type(model).__name__}"
    )


def _read_config(folder):
    config = read_json(folder / CONFIG_NAME)
    if not str(config.get("registered_name")).startswith(_PACKAGE):
        raise ValueError(
            f"{folder} must be a folder of save_to_preset; PyTorch's and Hugging "
            f"Face's are read by from_pretrained. Received: {CONFIG_NAME} with "
            f"{', '.join(sorted(config)) or 'nothing'}"
        )
    return config
