"""Images of TensorFlow Datasets, read from its TFRecord files."""

import math

from keras_mae.data.source import HELD_OUT_NAMES
from keras_mae.data.tfrecord import ImageRecords, Shard

# of the training split, where there is no other one
_HELD_OUT_SHARE = 0.02


def load_tfds(name, data_dir=None, divide=True):
    """Finds a data set's images, prepared if needed: for training, and held out."""
    try:
        # slow to import, and of use to this source alone
        import tensorflow_datasets
    except ImportError as error:
        raise ValueError(
            "tfds needs TensorFlow Datasets: pip install 'keras-mae[tfds]'. "
            f"Received: {error}"
        ) from error
    try:
        builder = tensorflow_datasets.builder(name, data_dir=data_dir)
    # an assertion: of a version that does not exist
    except (ValueError, RuntimeError, AssertionError) as error:
        cause, _, _ = str(error).partition("\n")  # a list of all data sets follows
        raise ValueError(
            "tfds must name a data set of TensorFlow Datasets, or one in data_dir. "
            f"Received: {name!r}, data_dir={data_dir!r}: {cause}"
        ) from error
    if not builder.is_prepared():
        _prepare(builder, name)
    key = _image_key(builder.info.features, name)
    _check_format(builder, name)
    label_key = _label_key(builder.info.features)
    names = builder.info.features[label_key].names if label_key else None
    # read undecoded, so that a crop decodes only its window
    return tuple(
        None
        if split is None
        else ImageRecords(_shards(builder, split), key, label_key, names)
        for split in _splits(builder, name, divide)
    )


def _prepare(builder, name):
    try:
        builder.download_and_prepare()
    # whatever a data set's own script raises
    except Exception as error:
        raise ValueError(
            f"tfds:{name} could not be prepared: {type(error).__name__}: {error}"
        ) from error


def _image_key(features, name):
    import tensorflow_datasets

    kinds = {
        key: feature
        for key, feature in features.items()
        if type(feature) is tensorflow_datasets.features.Image
    }
    key = "image" if "image" in kinds else next(iter(kinds), None)
    if key is None or (key != "image" and len(kinds) > 1):
        raise ValueError(
            f"tfds:{name} must have a feature 'image', or a single one that is an "
            f"image. Received: {', '.join(sorted(features))}"
        )
    if kinds[key].np_dtype == "float32":
        raise ValueError(
            f"tfds:{name} must hold images of 8 or 16 bits. Received: floats"
        )
    return key


def _label_key(features):
    import tensorflow_datasets

    kinds = [
        key
        for key, feature in features.items()
        if isinstance(feature, tensorflow_datasets.features.ClassLabel)
    ]
    return "label" if "label" in kinds else kinds[0] if len(kinds) == 1 else None


def _check_format(builder, name):
    kind = builder.info.file_format.value
    if kind != "tfrecord":
        raise ValueError(
            f"tfds:{name} must be prepared as tfrecord. Received: {kind}; prepare it "
            "again with file_format='tfrecord'"
        )


def _splits(builder, name, divide):
    """Returns the names of the splits for training and held out (or `None`)."""
    sizes = {split: info.num_examples for split, info in builder.info.splits.items()}
    if not sizes.get("train"):
        raise ValueError(
            f"tfds:{name} must have a split 'train' with images. "
            f"Received: {', '.join(sorted(sizes)) or 'none'}"
        )
    for split in HELD_OUT_NAMES:
        if sizes.get(split):
            return "train", split
    if not divide:
        return "train", None
    if sizes["train"] < 2:
        raise ValueError(
            f"tfds:{name} must have at least two images, one of them held out. "
            f"Received: {sizes['train']}"
        )
    begin = sizes["train"] - max(1, math.ceil(sizes["train"] * _HELD_OUT_SHARE))
    return f"train[:{begin}]", f"train[{begin}:]"


def _shards(builder, split):
    return [
        Shard(part.filename, part.skip, part.take)
        for part in builder.info.splits[split].file_instructions
    ]
