"""What a script's `--model` names: a run, a file of ours, or published weights."""

import os
from pathlib import Path

import keras

from keras_mae.image_processor import MAEImageProcessor
from keras_mae.models import MAEClassifier, MAEEncoder
from keras_mae.pretrainer import MAEPretrainer
from keras_mae.processors import find_processor
from keras_mae.weights.formats import describe
from keras_mae.weights.reader import open_checkpoint


def load_run(source):
    """Loads the model of a run, or of a `.keras` file, and its image processor.

    Args:
        source: Path of a run's folder or of a file.

    Returns:
        A tuple: the model, and the `MAEImageProcessor` that lies beside it.

    Raises:
        ValueError: If one of them is missing, or can't be read.

    Example:

    ```python
    keras_mae.MAEPretrainer.from_preset("mae_tiny").save("model.keras")
    MAEImageProcessor(image_size=32).save_pretrained(".")
    model, processor = load_run(".")
    ```
    """
    path = model_file(source)
    processor = MAEImageProcessor.from_pretrained(path)
    return load_keras(path), processor


def model_file(source):
    """Finds the `.keras` file that a run or a path means.

    Args:
        source: Path of a run's folder or of a file.

    Returns:
        A `Path`.

    Raises:
        ValueError: If there is none.

    Example:

    ```python
    Path("model.keras").touch()
    assert model_file(".") == Path("model.keras")
    ```
    """
    path = Path(os.path.expanduser(source))
    path = path if path.suffix == ".keras" else path / "model.keras"
    if not path.is_file():
        raise ValueError(f"--model must be the folder of a run. {path} does not exist")
    return path


def load_keras(path):
    """Loads a `.keras` file as it is, without compiling.

    Args:
        path: Path of the file.

    Returns:
        A model.

    Raises:
        ValueError: If it can't be read.

    Example:

    ```python
    keras_mae.MAEPretrainer.from_preset("mae_tiny").save("model.keras")
    assert not load_keras("model.keras").compiled
    ```
    """
    try:
        return keras.models.load_model(path, compile=False)
    except Exception as error:  # a broken archive fails in many ways
        raise ValueError(f"{path} is no readable model: {error}") from error


def load_model(source):
    """Loads the model that a source holds, of the class that the source tells.

    A run or `.keras` file says it itself; of other weights those with a decoder make
    a `MAEPretrainer`, those with a head a `MAEClassifier`, others a `MAEEncoder`.

    Args:
        source: A run, a `.keras` file, a hub id, or a folder or file of PyTorch's.

    Returns:
        A tuple: the model, and the source's `MAEImageProcessor`; `None` in its place
        where none lies beside the weights.

    Raises:
        ValueError: If the source can't be read.

    Example:

    ```python
    keras_mae.MAEPretrainer.from_preset("mae_tiny").save_pretrained("published")
    model, processor = load_model("published")
    assert isinstance(model, keras_mae.MAEPretrainer) and processor is None
    ```
    """
    if is_run(source):
        path = model_file(source)
        return load_keras(path), find_processor(path)
    checkpoint = open_checkpoint(source)
    parts = describe(checkpoint).contents.parts
    cls = MAEClassifier if parts & {"head", "probe"} else MAEEncoder
    cls = MAEPretrainer if "decoder" in parts else cls
    return cls.from_pretrained(checkpoint), find_processor(source)


def with_precision(model, precision):
    """Builds a model with the same weights under another dtype policy.

    Args:
        model: A `MAEPretrainer`, `MAEClassifier` or `MAEEncoder`.
        precision: `"float32"`, `"mixed_bfloat16"`, or another policy of Keras.

    Returns:
        A model of the same class.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    half = with_precision(model, "mixed_bfloat16")
    assert half.encoder(np.zeros((1, 32, 32, 3))).dtype == "bfloat16"
    ```
    """
    policy = keras.dtype_policies.serialize(keras.dtype_policies.get(precision))
    copy = type(model).from_config(_with_policy(model.get_config(), policy))
    for new, old in zip(copy.weights, model.weights, strict=True):
        new.assign(keras.ops.cast(old, new.dtype))
    return copy


def _with_policy(config, policy):
    """Replaces the dtype policy of a configuration and of all layers in it."""
    if isinstance(config, dict):
        return {
            key: policy if key == "dtype" else _with_policy(value, policy)
            for key, value in config.items()
        }
    return config


def is_run(source):
    """Says whether a name is that of a run or `.keras` file, not of other weights.

    Args:
        source: Str.

    Returns:
        Bool.

    Example:

    ```python
    assert is_run("runs/photos/best.keras") and not is_run("facebook/vit-mae-base")
    ```
    """
    path = Path(os.path.expanduser(source))
    return path.suffix == ".keras" or (path / "model.keras").is_file()
