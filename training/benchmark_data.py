"""Benchmark the input pipeline of training, in images per second, without a model.

Run: python training/benchmark_data.py --image_size=224

Without --dataset it writes JPEGs of 500x375 pixels, made of scikit-image's photographs,
and reads them as files and as TFRecord shards.
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
from keras_mae.data.tfrecord import image_example
from keras_mae.utils.flags import check_at_least, flag, run_script

SIZE = (500, 375)
SHARDS = 4


@dataclasses.dataclass
class DataConfig:
    """Flags of this script."""

    dataset: str | None = flag(
        "dataset, as for pretrain.py; default: JPEGs made of photographs", None
    )
    data_dir: str | None = flag(
        "folder of prepared data sets, for tfds:NAME and hf:NAME", None
    )
    image_size: int = flag("output image size in pixels", 224)
    batch_size: int = flag("batch size", 64)
    batches: int = flag("batches per measurement", 8)
    repeats: int = flag("number of measurements", 5)
    images: int = flag("number of JPEGs to write, without --dataset", 512)


def make_files(folder, count):
    """Writes crops of photographs as JPEG files, and the same into TFRecord shards."""
    photos = data.load_photos().training
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
        writers[number % SHARDS].write(image_example(path.read_bytes()))
    for writer in writers:
        writer.close()


def measure(dataset, config):
    """Returns images per second of each repeat."""
    source = data.load_source(dataset, data_dir=config.data_dir)
    processor = keras_mae.MAEImageProcessor(
        config.image_size, source.mean, source.std, resample="bicubic"
    )
    batches = iter(data.training_pipeline(source, processor, config.batch_size, seed=0))
    # the first repeat is dropped: it would count batches prefetched before it
    rates = []
    for _ in range(config.repeats + 1):
        start = time.perf_counter()
        for _ in range(config.batches):
            next(batches)
        seconds = time.perf_counter() - start
        rates.append(config.batches * config.batch_size / seconds)
    return rates[1:]


def main(config):
    """Prints the median rate of each dataset."""
    check_at_least(config, 1, "batches", "repeats", "images")
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
