"""Reads TFRecord files: all records of a file, or only those that are still needed."""

import struct

import numpy as np
import tensorflow as tf

from keras_mae.data.storage import open_unbuffered

# before a record: its length (8 bytes) and a checksum (4); after it another (4)
_LENGTH = struct.Struct("<Q")
_FRAME = 16
# at a time, as TFRecordDataset
_BUFFER = 2**18


def read_records(shard, path, skip, take):
    """Reads a shard's records: `(shard, record, bytes)`."""
    records = tf.data.TFRecordDataset(path).enumerate().skip(skip).take(take)
    return records.map(lambda record, content: (shard, record, content))


def list_records(shard, path, skip, take):
    """Lists a shard's records without reading them: `(shard, record)`."""
    return _numbered(shard, skip, take)


def _numbered(shard, begin, count, *others):
    """Zips the shard's number and those of its records with others."""
    # a function for each record would take ten times as long
    shards = tf.data.Dataset.from_tensors(shard).repeat()
    return tf.data.Dataset.zip(
        shards, tf.data.Dataset.range(begin, begin + count), *others
    )


def record_offsets(path):
    """Yields where a file's records begin, by seeking from length to length."""
    offset, count, size = 0, 0, tf.io.gfile.stat(path).length
    with open_unbuffered(path) as file:
        while offset < size:
            yield offset
            file.seek(offset)
            head = file.read(_LENGTH.size)
            length = _LENGTH.unpack(head)[0] if len(head) == _LENGTH.size else size
            offset += _FRAME + length
            count += 1
    if offset > size:
        raise ValueError(
            f"{path} must be a whole, uncompressed TFRecord file. It is truncated in "
            f"record {count - 1}"
        )


class NeededRecords:
    """Reads some records, `(shard, record)`; of the others there are empty strings."""

    def __init__(self, shards, needed):
        numbers, records = np.asarray(needed, "int64").reshape(-1, 2).T
        turns = np.lexsort((records, numbers))
        ends = np.searchsorted(numbers[turns], np.arange(1, len(shards)))
        parts = list(map(_runs, shards, np.split(records[turns], ends)))
        self._starts = np.cumsum([0, *map(len, parts)])
        self._runs = np.concatenate(parts)

    def read(self, shard, path, skip, take):
        """Reads a shard's needed records: `(shard, record, bytes)`."""
        begin, end = (tf.gather(self._starts, shard + place) for place in (0, 1))
        runs = tf.data.Dataset.from_tensor_slices(
            tuple(tf.constant(column)[begin:end] for column in self._runs.T)
        )
        return runs.interleave(
            lambda *run: self._read_run(shard, path, *run), cycle_length=1
        )

    def _read_run(self, shard, path, blank, begin, count, offset, size):
        """Reads one row of `_runs`."""
        # A count for `take` must be an argument: TensorFlow crashes in optimizing a
        # function that computes it.
        blanks = tf.data.Dataset.from_tensors("").repeat()
        contents = tf.data.experimental.from_variant(
            # the only reader that can begin at an offset, and in a function only
            tf.raw_ops.TFRecordDatasetV2(
                filenames=path[None],
                compression_type="",
                buffer_size=tf.minimum(size, _BUFFER),
                byte_offsets=offset[None],
            ),
            tf.TensorSpec((), tf.string),
        )
        # a shuffle of both puts each record where it would be among all
        return _numbered(shard, begin - blank, blank, blanks).concatenate(
            _numbered(shard, begin, count, contents.take(count))
        )


def _runs(shard, needed):
    """Divides a shard into runs of needed records, `(N, 5)` int64."""
    begin, end = shard.skip, shard.skip + shard.take
    if not len(needed):
        return np.array([[shard.take, end, 0, 0, 0]], "int64")
    breaks = np.flatnonzero(np.diff(needed) > 1)
    firsts = needed[[0, *breaks + 1]]
    stops = needed[[*breaks, -1]] + 1
    if begin == 0 and len(needed) == shard.take:
        offsets, sizes = np.zeros_like(firsts), np.full_like(firsts, _BUFFER)
    else:
        places = [*record_offsets(shard.path), tf.io.gfile.stat(shard.path).length]
        offsets = np.array(places, "int64")[firsts]
        sizes = np.array(places, "int64")[stops] - offsets
    blanks = firsts - [begin, *stops[:-1]]
    # how many are left out before, the first, how many, where they begin, their bytes
    rows = np.stack([blanks, firsts, stops - firsts, offsets, sizes], axis=1)
    # the unneeded ones after the last run
    return np.append(rows, [[end - stops[-1], end, 0, 0, 0]], axis=0)
