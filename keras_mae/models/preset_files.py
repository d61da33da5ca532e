"""Presets in folders: a model's configuration and its Keras weights."""

import json
from pathlib import Path
from typing import Any

import keras

from keras_mae.presets import CLASSIFIER, check_num_classes
from keras_mae.utils.files import atomic_write, make_folder
from keras_mae.utils.typing import PathLike
from keras_mae.weights.hub import CONFIG_FILE, read_json

WEIGHTS_FILE = "model.weights.h5"
_PACKAGE = "keras_mae>"


def is_preset_folder(source: PathLike) -> bool:
    return (Path(source).expanduser() / CONFIG_FILE).is_file()


def save_to_preset(model: keras.Model, folder: PathLike) -> None:
    """Writes a model's configuration and weights into a folder."""
    for part in (model, getattr(model, "encoder", model)):
        _check_registered(type(part))
    folder = Path(folder).expanduser()
    if is_preset_folder(folder):
        _read_config(folder)  # another library's files stay what they are
    make_folder(folder)
    config = keras.saving.serialize_keras_object(model)
    config = {key: config[key] for key in ("class_name", "registered_name", "config")}
    config["module"] = type(model).__module__
    with atomic_write(folder / WEIGHTS_FILE) as part:
        model.save_weights(part)
    with atomic_write(folder / CONFIG_FILE) as part:
        part.write_text(json.dumps(config, indent=2))


def load_preset(
    cls: type, folder: PathLike, load_weights: bool, overrides: dict[str, Any]
) -> keras.Model:
    """Builds what `save_to_preset` wrote; a new head takes `overrides`."""
    folder = Path(folder).expanduser()
    model = keras.saving.deserialize_keras_object(_read_config(folder))
    if load_weights:
        try:
            model.load_weights(folder / WEIGHTS_FILE)
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{folder / WEIGHTS_FILE} can't be read: {error}") from (
                error
            )
    encoder = getattr(model, "encoder", model)
    if getattr(cls, "has_head", False) and not isinstance(model, cls):
        check_num_classes(overrides)
        unknown = sorted(set(overrides) - set(CLASSIFIER))
        if unknown:
            raise ValueError(
                "The encoder of a preset in a folder stays as it was saved; a new head "
                f"takes {', '.join(CLASSIFIER)}. Received: {', '.join(unknown)}"
            )
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
    config = read_json(folder / CONFIG_FILE)
    name = str(config.get("registered_name"))
    if not name.startswith(_PACKAGE) and not _is_ours(name):
        raise ValueError(
            f"{folder} must be a folder of save_to_preset, and a class of your own be "
            "imported first; PyTorch's and Hugging Face's folders are read by "
            f"from_pretrained. Received: {CONFIG_FILE} with "
            f"{', '.join(sorted(config)) or 'nothing'}, registered_name {name:.60}"
        )
    return config


def _is_ours(name):
    """Whether a name is that of a registered class which is made of one of ours."""
    found = keras.saving.get_registered_object(name)
    return isinstance(found, type) and any(
        keras.saving.get_registered_name(base).startswith(_PACKAGE)
        for base in found.__mro__
    )


def _check_registered(cls):
    """Raises unless a class can be found again by what is written of it."""
    name = keras.saving.get_registered_name(cls)
    if keras.saving.get_registered_object(name) is not cls:
        raise ValueError(
            "save_to_preset needs a class that from_preset can find: put "
            "@keras.saving.register_keras_serializable(package=...) before "
            f"{cls.__name__}. Received: a class that is not registered"
        )
