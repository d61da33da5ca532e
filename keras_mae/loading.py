"""What a script's `--model` names: a run, a file of ours, or published weights."""

import os
from pathlib import Path

import keras
import numpy as np

from keras_mae.files import folder_of
from keras_mae.image_processor import CONFIG_NAME, MAEImageProcessor
from keras_mae.models import MAEClassifier, MAEEncoder
from keras_mae.positions import resize_positions
from keras_mae.pretrainer import MAEPretrainer
from keras_mae.weights.formats import describe
from keras_mae.weights.hub import Location, Unreached
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
    path = _model_file(source)
    processor = MAEImageProcessor.from_pretrained(path)
    return _load_keras(path), processor


def _model_file(source):
    """Finds the `.keras` file that a run or a path means."""
    path = Path(os.path.expanduser(source))
    path = path if path.suffix == ".keras" else path / "model.keras"
    if not path.is_file():
        raise ValueError(f"--model must be the folder of a run. {path} does not exist")
    return path


def _load_keras(path):
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
        path = _model_file(source)
        return _load_keras(path), find_processor(path)
    checkpoint = open_checkpoint(source)
    parts = describe(checkpoint).contents.parts
    cls = MAEClassifier if parts & {"head", "probe"} else MAEEncoder
    cls = MAEPretrainer if "decoder" in parts else cls
    return cls.from_pretrained(checkpoint), find_processor(source)


def find_processor(source):
    """Reads the image processor that a source brings along, if it does.

    Args:
        source: A run, a `.keras` file, a hub id, or a folder or file of PyTorch's.

    Returns:
        A `MAEImageProcessor`; `None` where the source has none, or where it is not in
        the hub's cache and the hub can't be reached.

    Raises:
        ValueError: If there is no such source, or its processor can't be read.

    Example:

    ```python
    Path("model.pth").touch()
    assert find_processor("model.pth") is None
    MAEImageProcessor(image_size=32).save_pretrained(".")
    assert find_processor("model.pth").image_size == (32, 32)
    ```
    """
    path = find_processor_file(source)
    return None if path is None else MAEImageProcessor.from_pretrained(path)


def find_processor_file(source, **reading):
    """Finds the `preprocessor_config.json` that a source brings along.

    Args:
        source: As for `find_processor`.
        **reading: `revision`, `token`, `cache_dir` and `local_files_only`, for a hub
            id.

    Returns:
        A `Path`, or `None` as `find_processor`.

    Raises:
        ValueError: If there is no such source.

    Example:

    ```python
    MAEImageProcessor(image_size=32).save_pretrained(".")
    assert find_processor_file(".") == Path("preprocessor_config.json")
    ```
    """
    try:
        return Location(folder_of(source) or source, **reading).find(CONFIG_NAME)
    except Unreached:
        return None  # what the repository lacks, the cache may not know to be absent


def default_processor(source, model):
    """Makes the published weights' processor for a model that came without one.

    It prints that it was made.

    Args:
        source: What the model was loaded from, for messages.
        model: A `MAEPretrainer`, `MAEClassifier` or `MAEEncoder`.

    Returns:
        A `MAEImageProcessor`.

    Raises:
        ValueError: If the model has other than three channels.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    assert default_processor("mae_tiny.pth", model).image_size == (32, 32)
    ```
    """
    encoder = getattr(model, "encoder", model)
    if encoder.num_channels != 3:
        raise ValueError(
            f"A model of {encoder.num_channels} channels needs its "
            f"{CONFIG_NAME}. Received: {source}, without one"
        )
    processor = MAEImageProcessor(encoder.image_size)
    print(
        f"No {CONFIG_NAME} was found for {source}: images are prepared as for the "
        f"published weights ({processor.resample}, ImageNet's mean and deviation)"
    )
    return processor


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


def copy_encoder(encoder, **changes):
    """Builds an encoder with the weights of another and some other settings.

    Args:
        encoder: A `MAEEncoder`.
        **changes: Constructor arguments that differ. `image_size` resizes the
            positions in two dimensions; other sizes must stay.

    Returns:
        A `MAEEncoder`.

    Raises:
        ValueError: If a weight has another shape then.

    Example:

    ```python
    encoder = MAEEncoder.from_preset("mae_tiny")
    copy = copy_encoder(encoder, image_size=(32, 64), drop_path_rate=0.1)
    assert copy.num_patches == 128
    ```
    """
    copy = MAEEncoder.from_config(
        {**encoder.get_config(), **changes, "trainable": True, "trainable_blocks": None}
    )
    problems, values = [], []
    for new, old in zip(_parameters(copy), _parameters(encoder), strict=True):
        value = keras.ops.convert_to_numpy(old)
        if old.path.endswith("positions/embeddings") and copy.grid != encoder.grid:
            value = resize_positions(value[0], encoder.grid, copy.grid)[None]
        if tuple(value.shape) != tuple(new.shape):
            problems.append(f"{new.path}: {tuple(new.shape)}, not {value.shape}")
        values.append((new, value))
    if problems:
        raise ValueError(f"The encoder's weights don't fit: {'; '.join(problems)}")
    for new, value in values:
        new.assign(value)
    return copy


def load_classifier(source, num_classes, pooling="mean", head=None, **changes):
    """Puts a classifier around the encoder that a source holds.

    A head that the source has for as many classes is kept, with what normalizes its
    features: statistics of batches that the classifier has no place for go into the
    head's own weights. A head is new where the classifier has such a place and the
    source has not.

    Args:
        source: A run, a `.keras` file, a hub id, or a folder or file of PyTorch's.
        num_classes: Int.
        pooling: `"mean"` or `"cls"`.
        head: Dict of other constructor arguments of `MAEClassifier`, or `None`.
        **changes: Constructor arguments of the encoder that differ from the source's.

    Returns:
        A `MAEClassifier`.

    Raises:
        ValueError: If the source can't be read, or its encoder doesn't fit.

    Example:

    ```python
    keras_mae.MAEPretrainer.from_preset("mae_tiny").save("model.keras")
    classifier = load_classifier("model.keras", num_classes=10, drop_path_rate=0.1)
    ```
    """
    options = {"pooling": pooling, **(head or {})}
    if not is_run(source):
        return MAEClassifier.from_pretrained(
            source, num_classes=num_classes, **options, **changes
        )
    model = _load_keras(_model_file(source))
    encoder = copy_encoder(getattr(model, "encoder", model), **changes)
    classifier = MAEClassifier(
        encoder, num_classes, dtype=encoder.dtype_policy, **options
    )
    # a head is trained on one way of pooling
    if isinstance(model, MAEClassifier) and model.pooling == pooling:
        _keep_head(model, classifier)
    return classifier


def _keep_head(old, new):
    """Copies a head, and what its features go through, as far as it fits."""
    if new.head_norm is not None:
        new.head_norm.set_weights(old.head_norm.get_weights())
    if old.num_classes != new.num_classes:
        return
    if new.batch_norm is None:
        new.head.set_weights(_without_batch_norm(old))
    elif old.batch_norm is not None:
        new.batch_norm.set_weights(old.batch_norm.get_weights())
        new.head.set_weights(old.head.get_weights())


def _without_batch_norm(classifier):
    """Returns a head's kernel and bias, with the statistics before it inside them."""
    kernel, bias = classifier.head.get_weights()  # (D, K), (K,)
    norm = classifier.batch_norm
    if norm is None:
        return kernel, bias
    mean, variance = (np.float64(value) for value in norm.get_weights())
    kernel = kernel / np.sqrt(variance + norm.epsilon)[:, None]
    return kernel, bias - mean @ kernel


def load_processor(source, image_size, channel_mean, channel_std):
    """Finds how the encoder of a source wants its images, for training pipelines.

    Args:
        source: As for `load_classifier`, or `None`.
        image_size: Int or pair `(height, width)`, in pixels.
        channel_mean: Sequence of floats, what to subtract where nothing tells it.
        channel_std: Sequence of floats, what to divide by where nothing tells it.

    Returns:
        A `MAEImageProcessor` that resizes bicubically, for as many channels as
        `channel_mean` has.

    Raises:
        ValueError: If there is no such source, or its processor can't be read.

    Example:

    ```python
    assert load_processor(None, 32, [0.5], [0.2]).num_channels == 1
    ```
    """
    told = None if source is None else find_processor(source)
    if told is not None and told.num_channels == len(channel_mean):
        channel_mean, channel_std = told.image_mean, told.image_std
    return MAEImageProcessor(image_size, channel_mean, channel_std, resample="bicubic")


def _parameters(encoder):
    """Lists an encoder's weights, in an order that its settings don't change."""
    layers = [encoder.patch_embedding, *encoder.blocks, encoder.norm]
    return [
        weight
        for layer in layers
        for weight in sorted(layer.weights, key=lambda weight: weight.path)
        if not weight.path.endswith("seed_generator_state")
    ]
