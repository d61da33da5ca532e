"""What a script's `--model` names: a run, a file of ours, or published weights."""

from pathlib import Path

import keras

from keras_mae.image_processor import CONFIG_NAME, MAEImageProcessor
from keras_mae.models import MAEClassifier, MAEEncoder
from keras_mae.positions import resize_positions
from keras_mae.pretrainer import MAEPretrainer
from keras_mae.weights.formats import describe
from keras_mae.weights.hub import Location
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
    path = Path(source)
    path = path if path.suffix == ".keras" else path / "model.keras"
    if not path.is_file():
        raise ValueError(f"--model must be the folder of a run. {path} does not exist")
    processor = MAEImageProcessor.from_pretrained(path.parent)
    try:
        model = keras.models.load_model(path, compile=False)
    except Exception as error:  # a broken archive fails in many ways
        raise ValueError(f"{path} is no readable model: {error}") from error
    return model, processor


def load_model(source):
    """Loads the model that a source holds, of the class that the source tells.

    A run or `.keras` file says it itself; of other weights those with a decoder make
    a `MAEPretrainer`, those with a head a `MAEClassifier`, others a `MAEEncoder`.

    Args:
        source: A run, a `.keras` file, a hub id, or a folder or file of PyTorch's.

    Returns:
        A tuple: the model, and the source's `MAEImageProcessor`; `None` in its place
        where published weights bring none.

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
        return load_run(source)
    checkpoint = open_checkpoint(source)
    parts = describe(checkpoint).contents.parts
    cls = MAEClassifier if parts & {"head", "probe"} else MAEEncoder
    cls = MAEPretrainer if "decoder" in parts else cls
    model = cls.from_pretrained(checkpoint)
    place = folder_of(source) or source
    if Location(place).find(CONFIG_NAME) is None:
        return model, None
    return model, MAEImageProcessor.from_pretrained(place)


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
        f"{source} has no {CONFIG_NAME}: images are prepared as for the published "
        f"weights ({processor.resample}, ImageNet's mean and deviation)"
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


def folder_of(source):
    """Finds the folder that a source lies in, if it lies on this machine.

    Args:
        source: A run, a `.keras` file, a hub id, or a folder or file of PyTorch's.

    Returns:
        A `Path`, or `None`.

    Example:

    ```python
    Path("best.keras").touch()
    assert folder_of("best.keras") == Path(".")
    assert folder_of("facebook/vit-mae-base") is None
    ```
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    return path.parent if path.is_file() else None


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
    return Path(source).suffix == ".keras" or Path(source, "model.keras").is_file()


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
        {**encoder.get_config(), **changes, "trainable": True}
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

    A head that the source has for as many classes is kept; else it is new.

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
    MAEImageProcessor(image_size=32).save_pretrained(".")
    classifier = load_classifier("model.keras", num_classes=10, drop_path_rate=0.1)
    ```
    """
    options = {"pooling": pooling, **(head or {})}
    if not is_run(source):
        return MAEClassifier.from_pretrained(
            source, num_classes=num_classes, **options, **changes
        )
    model, _ = load_run(source)
    encoder = copy_encoder(getattr(model, "encoder", model), **changes)
    classifier = MAEClassifier(
        encoder, num_classes, dtype=encoder.dtype_policy, **options
    )
    theirs = getattr(model, "head", None)
    kept = theirs is not None and model.get_config()["pooling"] == pooling
    if kept and tuple(theirs.kernel.shape) == tuple(classifier.head.kernel.shape):
        classifier.head.set_weights(theirs.get_weights())
        if classifier.head_norm is not None:
            classifier.head_norm.set_weights(model.head_norm.get_weights())
    return classifier


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

    Example:

    ```python
    assert load_processor(None, 32, [0.5], [0.2]).num_channels == 1
    ```
    """
    folder = Path(source or "")
    folder = folder.parent if folder.is_file() else folder
    told = None
    if source is not None and (folder / CONFIG_NAME).is_file():
        told = MAEImageProcessor.from_pretrained(folder)
    elif source is not None and not folder.exists() and not is_run(source):
        told = MAEImageProcessor.from_pretrained(source)  # the hub's
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
