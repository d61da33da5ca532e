"""How a source wants its images: by what it brings along, or as published weights."""

from keras_mae.preprocessing.image_processor import CONFIG_NAME, MAEImageProcessor
from keras_mae.weights.hub import HubUnavailableError, Location


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
    assert find_processor(".") is None
    MAEImageProcessor(image_size=32).save_pretrained(".")
    assert find_processor(".").image_size == (32, 32)
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
    assert find_processor_file(".").name == "preprocessor_config.json"
    ```
    """
    try:
        return Location(source, **reading).find(CONFIG_NAME)
    except HubUnavailableError:
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
