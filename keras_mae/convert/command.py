"""Converts weights between other libraries' formats and Keras, either way.

Run: keras-mae-convert SOURCE DESTINATION [--format=huggingface] [--check]

SOURCE is a hub id, a folder, a file of PyTorch weights or of Hugging Face's TensorFlow
classes (`tf_model.h5`), or a `.keras` file. DESTINATION is a `.keras` file, or a folder
for the library that `--format` names. The source's `preprocessor_config.json` is copied
to the destination, if there is none yet, or made of what timm's `config.json` says. For
timm it is also written into `config.json`.
"""

import dataclasses
import shutil
from pathlib import Path

from keras_mae import models
from keras_mae.convert.check import compare_with_torch
from keras_mae.models.loading import load_keras, model_class
from keras_mae.ops.patches import as_pair
from keras_mae.preprocessing.pretrained_processor import (
    find_processor,
    find_processor_file,
)
from keras_mae.utils.files import atomic_write, make_folder
from keras_mae.utils.flags import flag, run_script
from keras_mae.utils.labels_file import (
    LABELS_FILE,
    encode_names,
    read_labels,
    write_labels,
)
from keras_mae.utils.text import first_names
from keras_mae.weights.checkpoint import Checkpoint
from keras_mae.weights.checkpoint_reader import open_checkpoint
from keras_mae.weights.format_detection import describe_checkpoint
from keras_mae.weights.hub import PROCESSOR_FILE
from keras_mae.weights.save_pretrained import FORMATS, save_pretrained
from keras_mae.weights.state_dict import encoder_of

MODELS = {
    "pretrainer": models.MAEPretrainer,
    "encoder": models.MAEEncoder,
    "classifier": models.MAEClassifier,
}

# flags on how other sources than `.keras` files are read: where the weights are, and
# what nothing beside them states
_PLACE = ("revision", "filename", "subfolder", "state_key")
_STATED = ("num_heads", "decoder_num_heads", "norm_pix_loss")
_READING = (*_PLACE, "ignore", *_STATED, "source_image_size")


@dataclasses.dataclass
class Config:
    """Flags of `keras-mae-convert`."""

    source: str = flag("hub id, folder, file, or .keras file", positional=True)
    destination: str = flag("a .keras file, or a folder", positional=True)
    format: str = flag("library that reads the folder", "huggingface", FORMATS)
    model: str | None = flag(
        "model to load; by default what the source contains", None, (*MODELS,)
    )
    num_heads: int | None = flag(
        "attention heads of the encoder, where the source does not state them", None
    )
    decoder_num_heads: int | None = flag(
        "attention heads of the decoder, where the source does not state them", None
    )
    source_image_size: str | None = flag(
        "image size that the source's positions are for, as in 32x128, where the "
        "source does not state it",
        None,
    )
    norm_pix_loss: bool | None = flag(
        "whether the model predicts normalized patches, where the source does not "
        "state it",
        None,
    )
    revision: str | None = flag("branch, tag or commit on the hub", None)
    filename: str | None = flag("file of weights in the folder or repository", None)
    subfolder: str | None = flag("folder in the folder or repository", None)
    state_key: str | None = flag(
        "name of the state dict in the file, or what the keys of a model in it begin "
        "with",
        None,
    )
    ignore: str | None = flag(
        "patterns of keys to leave out, such as fpn.*,*.aux", None
    )
    check: bool = flag("compare the outputs with PyTorch's", False)


def convert(config: Config) -> None:
    """Reads the source, writes the destination, and prints what was done."""
    source, destination = Path(config.source), Path(config.destination)
    if source.suffix == destination.suffix == ".keras":
        raise ValueError("SOURCE or DESTINATION must be another format than .keras")
    compared: list[Checkpoint | Path] = []
    if source.suffix == ".keras":
        model = _part_of(config, _load_keras(source))
    else:
        compared.append(
            open_checkpoint(
                config.source,
                ignore=config.ignore.split(",") if config.ignore else (),
                **{name: getattr(config, name) for name in _PLACE},
            )
        )
        model = _read(config, compared[0])
        print(model.port_report)
    processor = _find_processor(config)
    if destination.suffix == ".keras":
        make_folder(destination.parent)
        _check_labels(destination.parent / LABELS_FILE, model)
        with atomic_write(destination) as part:
            model.save(part)
        print(f"{destination}: {type(model).__name__}")
        if getattr(model, "class_names", None):
            print(write_labels(destination.parent, model.class_names))
    else:
        print(save_pretrained(model, destination, config.format, processor))
        compared.append(destination)
    _write_processor(config, processor)
    for place in compared if config.check else ():
        checkpoint = open_checkpoint(place)
        difference = compare_with_torch(model, checkpoint)
        print(f"{checkpoint.source}: relative difference to PyTorch {difference:.1e}")


def _find_processor(config):
    """Loads the destination's image processor, else the source's, or `None`."""
    folder = _folder_of(config)
    try:
        if (folder / PROCESSOR_FILE).exists():
            return find_processor(folder)
        return find_processor(config.source, **_place_of(config))
    except ValueError as error:
        print(f"note: {error}")
        return None


def _write_processor(config, processor):
    """Copies the source's `preprocessor_config.json`, or writes one."""
    place = _folder_of(config) / PROCESSOR_FILE
    if place.exists():
        return
    found = find_processor_file(config.source, **_place_of(config))
    if found is not None:
        with atomic_write(place) as part:
            shutil.copyfile(found, part)
        print(f"{place}: copied from {config.source}")
    elif processor is not None:
        processor.save_pretrained(place.parent)
        print(f"{place}: made of what {config.source} says")


def _check_labels(path, model):
    """Raises where class names of another model, such as a run's, would be replaced."""
    names = getattr(model, "class_names", None)
    if names and path.is_file() and path.read_bytes() != encode_names(names):
        raise ValueError(
            f"{path} must have the names of the classes: give another folder. "
            f"Received: a file of others than {first_names(names)}"
        )


def _folder_of(config):
    destination = Path(config.destination)
    return destination.parent if destination.suffix == ".keras" else destination


def _place_of(config):
    return {"revision": config.revision, "subfolder": config.subfolder}


def _load_keras(path):
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    model = load_keras(path)
    if not isinstance(model, tuple(MODELS.values())):
        names = ", ".join(kind.__name__ for kind in MODELS.values())
        raise ValueError(
            f"{path} must hold one of {names}. Received: {type(model).__name__}"
        )
    labels = path.parent / LABELS_FILE
    if isinstance(model, models.MAEClassifier) and labels.is_file():
        model.class_names = read_labels(labels, model.num_classes)
    return model


def _part_of(config, model):
    """Returns `--model` of a `.keras` file; raises on flags that are not for one."""
    given = [name for name in _READING if getattr(config, name) is not None]
    if given:
        raise ValueError(
            "A .keras file tells all by itself: leave these flags out. Received: "
            + ", ".join(f"--{name}={getattr(config, name)}" for name in given)
        )
    if config.model == "encoder":
        return encoder_of(model)
    if config.model is not None and not isinstance(model, MODELS[config.model]):
        raise ValueError(
            f"--model must be encoder or what {config.source} holds, a "
            f"{type(model).__name__}. Received: {config.model}"
        )
    return model


def _read(config, checkpoint):
    """Loads `--model`, or what the source contains."""
    if config.model == "classifier":
        _check_head(config.source, checkpoint)
    cls = model_class(checkpoint) if config.model is None else MODELS[config.model]
    stated = {
        name: getattr(config, name)
        for name in _STATED
        if getattr(config, name) is not None
    }
    if config.source_image_size is not None:
        stated["source_image_size"] = _read_size(config.source_image_size)
    return cls.from_pretrained(checkpoint, progress=True, **stated)


def _check_head(source, checkpoint):
    if "num_classes" not in describe_checkpoint(checkpoint).sizes:
        raise ValueError(
            f"--model must be encoder, or pretrainer with a decoder: {source} has no "
            "classifier's head; keras-mae-finetune --model=SOURCE draws one. "
            "Received: classifier"
        )


def _read_size(text):
    """Reads `224` or `32x128`."""
    numbers = text.split("x")
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(
            f"source_image_size must be as in 224 or 32x128. Received: {text}"
        )
    return as_pair([int(number) for number in numbers * 2][:2], "source_image_size")


def cli() -> None:
    """Runs the command line."""
    run_script(convert, Config, __doc__)
