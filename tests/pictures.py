"""Small pictures that tell which they are, in every kind of data set."""

import io

import numpy as np
import tensorflow as tf
from PIL import Image

from keras_mae import MAEImageProcessor

FORMATS = (
    ("png", {}),
    ("jpg", {"quality": 95, "subsampling": 0}),
    ("webp", {"lossless": True}),
    ("bmp", {}),
)
KINDS = {"jpg": "JPEG"}


def picture(number):
    """Draws a picture whose red is its number, the rest of it noise."""
    rng = np.random.default_rng(number)
    height, width = rng.integers(24, 48, 2)
    pixels = rng.integers(96, 160, (height, width, 3))
    pixels[..., 0] = 8 * number
    return pixels.astype("uint8")


def encode(pixels, ending="png", **options):
    """Encodes pixels, or a PIL image."""
    content = io.BytesIO()
    kind = KINDS.get(ending, ending.upper())
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(content, kind, **options)
    return content.getvalue()


def encoded_picture(number):
    """Returns a picture's ending and bytes, of another format each time."""
    ending, options = FORMATS[number % len(FORMATS)]
    return ending, encode(picture(number), ending, **options)


def write_folder(folder, numbers):
    """Writes pictures in two class folders."""
    for number in numbers:
        ending, content = encoded_picture(number)
        path = folder / "ab"[number % 2] / f"{number:02}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_bordered(folder, numbers):
    """Writes pictures whose border tells the class, and that are alike within it."""
    for number in numbers:
        rng = np.random.default_rng(number // 2)
        height, width = rng.integers(96, 192, 2)
        pixels = np.full((height, width, 3), 255 * (number % 2), "uint8")
        inside = pixels[height // 16 : -height // 16, width // 16 : -width // 16]
        inside[:] = rng.integers(0, 256, (*inside.shape[:2], 3))
        path = folder / ("black", "white")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(pixels))


def write_shards(folder, numbers, shards, key="image/encoded"):
    """Writes pictures into TFRecord files, in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        with tf.io.TFRecordWriter(str(folder / f"{shard}.tfrecord")) as writer:
            for number in list(numbers)[shard::shards]:
                writer.write(example(key, encoded_picture(number)[1]))


def example(key, content):
    """Serializes bytes under a key."""
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[content]))
    features = tf.train.Features(feature={key: feature})
    return tf.train.Example(features=features).SerializeToString()


def prepare_tfds(data_dir, name="mini_pictures", key="image", **splits):
    """Prepares a data set of pictures for TensorFlow Datasets, several shards each."""
    import tensorflow_datasets as tfds

    images = {
        split: [(n, {key: picture(n)}) for n in numbers]
        for split, numbers in splits.items()
    }
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {key: tfds.features.Image(shape=(None, None, 3))}
        ),
        split_datasets=images,
        data_dir=data_dir,
        download_config=tfds.download.DownloadConfig(num_shards=4),
    )


def processor_for(source, size=16):
    """Makes the processor of a source."""
    return MAEImageProcessor(size, source.mean, source.std, resample="bicubic")


def numbers(source, batch):
    """Reads the numbers of pictures from normalized images."""
    grey = processor_for(source).denormalize(np.asarray(batch))
    return np.rint(grey[..., 0].mean(axis=(1, 2)) / 8).astype(int).tolist()
