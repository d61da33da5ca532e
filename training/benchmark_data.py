"""Measures how many images a second the training pipeline gives, without a model.

Run: python training/benchmark_data.py --image_size=224

Without --dataset it makes JPEGs of 500x375 pixels from scikit-image's photographs, and
reads them as files and as TFRecord shards.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import dataclasses
import os
import statistics
import tempfile
import time
from pathlib import Path

import tensorflow as tf
from PIL import Image

from keras_mae import data
from keras_mae.utils.flags import flag, run_script

SIZE = (500, 375)
SHARDS = 4


@dataclasses.dataclass
class DataConfig:
    """The flags of this script."""

    dataset: str | None = flag("as for pretrain.py; default: photographs as JPEG", None)
    data_dir: str | None = flag("where TensorFlow Datasets keeps its files", None)
    image_size: int = flag("pixels", 224)
    batch_size: int = flag("images a batch", 64)
    batches: int = flag("how many are timed at once", 8)
    repeats: int = flag("how often", 5)
    images: int = flag("JPEGs to make", 512)


def make_files(folder, count):
    """Writes crops of the photographs as JPEGs, and the same into shards."""
    photos = [photo for photo in data.load_photos().training if min(photo.shape) > 2]
    writers = [
        tf.io.TFRecordWriter(str(Path(folder, f"{number}.tfrecord")))
        for number in range(SHARDS)
    ]
    for number in range(count):
        window = data.random_resized_crop(
            photos[number % len(photos)], SIZE[::-1], [0, number]
        )
        path = Path(folder, f"{number:05}.jpg")
        Image.fromarray(window.numpy().astype("uint8")).save(path, quality=90)
        content = tf.train.BytesList(value=[path.read_bytes()])
        feature = {"image/encoded": tf.train.Feature(bytes_list=content)}
        example = tf.train.Example(features=tf.train.Features(feature=feature))
        writers[number % SHARDS].write(example.SerializeToString())
    for writer in writers:
        writer.close()


def measure(dataset, config):
    """Times the pipeline.

    Returns:
        List of floats, images a second in each repeat.
    """
    source = data.load_source(dataset, data_dir=config.data_dir)
    processor = keras_mae.MAEImageProcessor(
        config.image_size, source.mean, source.std, resample="bicubic"
    )
    batches = iter(data.training_pipeline(source, processor, config.batch_size, seed=0))
    # what was prefetched meanwhile would flatter the first repeat: it is thrown away
    rates = []
    for _ in range(config.repeats + 1):
        start = time.perf_counter()
        for _ in range(config.batches):
            next(batches)
        seconds = time.perf_counter() - start
        rates.append(config.batches * config.batch_size / seconds)
    return rates[1:]


def main(config):
    """Measures, and prints medians."""
    for name in ("batches", "repeats", "images"):
        if getattr(config, name) < 1:
            raise ValueError(
                f"{name} must be at least 1. Received: {getattr(config, name)}"
            )
    with tempfile.TemporaryDirectory() as folder:
        datasets = [config.dataset]
        if config.dataset is None:
            make_files(folder, config.images)
            datasets = [f"folder:{folder}", f"tfrecord:{folder}/*.tfrecord"]
        for dataset in datasets:
            rates = measure(dataset, config)
            print(
                f"{dataset.partition(':')[0]}, {config.image_size} pixels, "
                f"{os.cpu_count()} cores: {statistics.median(rates):.0f} images/s "
                f"({min(rates):.0f} to {max(rates):.0f})"
            )


if __name__ == "__main__":
    run_script(main, DataConfig, __doc__)
