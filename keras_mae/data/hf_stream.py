"""Images of Hugging Face's `datasets` that are read while they are downloaded."""

import tensorflow as tf

from keras_mae.data.encoded_images import EncodedImages
from keras_mae.data.shuffling import shuffled_records, shuffled_turns

_NO_LABEL = -1


class ImageStream(EncodedImages):
    """Encoded images that are read one after the other, shuffled as TFRecords are."""

    def __init__(
        self,
        dataset,
        place,
        columns,
        count,
        version,
        class_names=None,
        data_files=(),
    ):
        self.place = place
        self.data_files = data_files
        self.class_names = class_names
        self._dataset = dataset
        self._columns = columns  # of images, and of labels or `None`
        self._count = count
        self._version = version

    def __len__(self):
        return self._count

    def training_items(self, order):
        """Shuffles the images without end: `(position, (name, bytes, label))`."""
        epoch, images = divmod(order.first_step * order.batch_size, len(self))
        epochs = tf.data.Dataset.counter(epoch)
        items = epochs.flat_map(lambda epoch: self._epoch(epoch, order)).skip(images)
        items = items.enumerate(order.first_step * order.batch_size)
        # each worker reads all: no one knows how many images a shard has
        return items.filter(
            lambda position, item: (
                position % order.batch_size // order.share == order.worker
            )
        )

    def held_out_items(self):
        """Lists the images once, in the shards' order."""
        shards = tf.data.Dataset.range(self._dataset.num_shards)
        return self._counted(shards.flat_map(self._read))

    def name(self, item):
        return item[0]

    def encoded(self, item):
        return item[1]

    def label(self, item):
        """Returns an image's class; an unknown one is an error."""
        label = item[2]
        known = tf.logical_and(label >= 0, label < len(self.class_names))
        with tf.control_dependencies([tf.debugging.Assert(known, [label])]):
            return tf.identity(label)

    def without(self, others):
        """Leaves nothing out: `load_source` refuses what has the same files."""
        return self

    def with_classes(self, class_names):
        """Gives the classes 0, 1, ... their names."""
        if self._columns[1] is None:
            raise ValueError(
                f"{self.place} must have a label: a ClassLabel, a column of integers "
                "named 'label', or ?label=COLUMN. Received: none"
            )
        return ImageStream(
            *(self._dataset, self.place, self._columns, self._count, self._version),
            *(class_names, self.data_files),
        )

    def fingerprint_rows(self):
        """Yields what changes with the images: the files' version, columns, number."""
        yield self.place, self._version, self._columns, self._count

    def _epoch(self, epoch, order):
        count = self._dataset.num_shards
        shards = tf.data.Dataset.from_tensor_slices(
            shuffled_turns(count, epoch, order.seed)
        )
        images = shuffled_records(shards, self._read, count, epoch, order.seed)
        return self._counted(images)

    def _counted(self, images):
        # with another number, a resumed run or the next evaluation would go on at
        # another image
        return images.apply(tf.data.experimental.assert_cardinality(len(self)))

    def _read(self, shard):
        """Reads a shard's images: `(name, bytes, label)`."""
        texts = (tf.TensorSpec((), tf.string),) * 2
        return tf.data.Dataset.from_generator(
            self._rows,
            args=(shard,),
            output_signature=(*texts, tf.TensorSpec((), tf.int64)),
        )

    def _rows(self, shard):
        image, label = self._columns
        count = self._dataset.num_shards
        part = self._dataset.shard(num_shards=count, index=int(shard))
        for row, example in enumerate(part):
            found = example[image] or {"bytes": b"", "path": None}
            name = f"row {row} of shard {shard} of {self.place}"
            if found["bytes"] is None and found["path"]:
                name = found["path"]
            kind = None if label is None else example[label]
            yield name, _content(found), _NO_LABEL if kind is None else kind


def _content(image):
    """Returns an image's bytes; none, as of a corrupt one, where it can't be read."""
    if image["bytes"] is not None:
        return image["bytes"]
    import fsspec

    try:
        with fsspec.open(image["path"], "rb") as file:
            return file.read()
    except (OSError, ValueError, TypeError):
        return b""


def count_images(builder, split):
    """Counts a split's images, from its description or the files' footers."""
    found = (builder.info.splits or {}).get(split)
    if found is not None and found.num_examples:
        return found.num_examples
    files = (builder.config.data_files or {}).get(split, ())
    if not all(str(file).endswith(".parquet") for file in files):
        raise ValueError(
            f"streaming needs the number of images in {split!r}: num_examples in the "
            "data set's dataset_info, or Parquet files. Received: neither"
        )
    return sum(map(_count_rows, files))


def _count_rows(path):
    import fsspec
    import pyarrow.parquet as parquet

    with fsspec.open(path, "rb") as file:
        return parquet.ParquetFile(file).metadata.num_rows
