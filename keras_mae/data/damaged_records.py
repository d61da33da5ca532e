"""TensorFlow's error of a TFRecord whose checksum is wrong, with the file's name."""

import contextlib
import re

import tensorflow as tf

from keras_mae.data.tfrecord_reader import record_offsets

# from where a record begins: its length's checksum is checked, then its content's
_CHECKED = (0, 12)


@contextlib.contextmanager
def naming_damaged_files(*sources, paths=()):
    """Raises TensorFlow's error of a damaged record as `ValueError` with the file."""
    try:
        yield
    except tf.errors.DataLossError as error:
        parts = [part for one in sources for part in (one.training, one.held_out)]
        shards = [shard for part in parts for shard in getattr(part, "shards", ())]
        found = re.search(r"record at (\d+)", str(error))
        # the error says only where in a file it is
        for path in dict.fromkeys([*paths, *(shard.path for shard in shards)]):
            number = found and _record(path, int(found[1]))
            if number is not None:
                raise ValueError(
                    f"{path} must be a whole, uncompressed TFRecord file. The checksum "
                    f"of record {number} is wrong"
                ) from error
        raise


def _record(path, place):
    """Returns the number of a file's damaged record there; `None` if it has none."""
    for number, offset in enumerate(record_offsets(path)):
        if place - offset in _CHECKED:
            try:
                list(tf.data.TFRecordDataset(path).skip(number).take(1))
            except tf.errors.DataLossError:
                return number
    return None
