"""A resumed run reads the TFRecords that it still needs, and no others."""

import itertools
import os

import numpy as np
import pytest
import tensorflow as tf

from keras_mae import data
from keras_mae.data import shuffling, tfrecord
from keras_mae.data.tfrecord_reader import record_offsets
from tests import pictures

SHARDS, COUNT, BATCH = 5, 31, 3


@pytest.fixture
def source(tmp_path, monkeypatch):
    # fewer than an epoch's, so that files end at different times
    monkeypatch.setattr(shuffling, "_SHUFFLE_BUFFER", 6)
    monkeypatch.setattr(shuffling, "_CYCLE", 2)
    pictures.write_shards(tmp_path, range(COUNT), shards=SHARDS)
    source = data.load_source(f"tfrecord:{tmp_path}/*", held_out="photos")
    assert source.epoch_size == COUNT
    return source


def batches(source, count, **arguments):
    processor = pictures.processor_for(source)
    pipeline = data.training_pipeline(source, processor, BATCH, seed=0, **arguments)
    return np.stack(list(itertools.islice(pipeline.as_numpy_iterator(), count)))


def spoil(source, numbers):
    """Overwrites records with zeros, which a reader's check sums would notice."""
    for number in numbers:
        path = source.training.shards[number % SHARDS].path
        offsets = [*record_offsets(path)]
        with open(path, "r+b") as file:
            content = file.read()
            begin = offsets[number // SHARDS] + 12
            end = [*offsets, len(content)][number // SHARDS + 1]
            file.seek(begin)
            file.write(bytes(end - begin))


def test_few_large_records_are_shuffled_at_once(source, monkeypatch):
    assert source.training._buffer == 6
    size = sum(os.path.getsize(shard.path) for shard in source.training.shards)
    monkeypatch.setattr(shuffling, "_BUFFER_BYTES", 4 * size // COUNT)
    again = tfrecord.ImageRecords(source.training.shards, "image/encoded")
    assert again._buffer in (3, 4)
    monkeypatch.setattr(shuffling, "_BUFFER_BYTES", 1)
    assert shuffling.buffer_size(COUNT, size) == 1
    assert shuffling.buffer_size(1, 0) == 1


# in the first epoch; its last batch, which begins the second; in that one
@pytest.mark.slow
@pytest.mark.parametrize(
    "first_step",
    [
        pytest.param(4, marks=pytest.mark.nightly),
        pytest.param(10, marks=pytest.mark.nightly),
        15,
    ],
)
def test_records_of_earlier_batches_are_not_read(source, first_step):
    whole = batches(source, 20)
    epoch = first_step * BATCH // COUNT
    rows = whole.reshape(-1, *whole.shape[2:])[epoch * COUNT : first_step * BATCH]
    seen = pictures.numbers(source, rows)
    assert len(set(seen)) == len(rows) > 0
    # as far as the end of the epoch, but for what is prefetched
    count = ((epoch + 1) * COUNT - first_step * BATCH) // BATCH
    spoil(source, seen)
    later = data.training_pipeline(
        source, pictures.processor_for(source), BATCH, seed=0, first_step=first_step
    )
    later = itertools.islice(later.as_numpy_iterator(), count)
    wanted = whole[first_step : first_step + count]
    np.testing.assert_array_equal(np.reshape([*later], wanted.shape), wanted)


@pytest.mark.nightly
def test_every_later_batch_is_the_same(source):
    whole = batches(source, 24)
    later = batches(source, 15, first_step=9)
    np.testing.assert_array_equal(later, whole[9:])
    # a worker of two, with the files that are dealt to it
    place = tf.distribute.InputContext(2, 1, 2)
    processor = pictures.processor_for(source)
    parts = [
        data.training_pipeline(
            source, processor, 4, 0, first_step=step, input_context=place
        )
        for step in (0, 5)
    ]
    whole, later = (np.stack(list(part.take(12))) for part in parts)
    np.testing.assert_array_equal(later[:7], whole[5:])


def test_as_many_records_are_read_as_are_left(source, monkeypatch):
    """Counts them: at step 6 of 10, a whole epoch less 18."""
    order = data.pipeline.worker_order(BATCH, 0, 6, None)[0]
    items = source.training.training_items(order).take(COUNT - 18)
    content = [content for _, (_, _, content) in items.as_numpy_iterator()]
    assert all(content) and len(set(content)) == COUNT - 18
    read = []
    monkeypatch.setattr(
        tfrecord.NeededRecords,
        "read",
        _counting(tfrecord.NeededRecords.read, read),
    )
    list(source.training._rest_of_epoch(0, 18, order))
    assert sum(read) == COUNT - 18


def _counting(method, read):
    def count(self, *shard):
        def note(content):
            read.append(bool(content))
            return np.int64(0)

        records = method(self, *shard)
        return records.map(
            lambda number, record, content: (
                number + tf.numpy_function(note, [content], tf.int64),
                record,
                content,
            )
        )

    return count
