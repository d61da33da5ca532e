"""Shuffling that depends only on the seed and the position in the stream."""

from typing import NamedTuple

import tensorflow as tf

from keras_mae.data.parallelism import PARALLEL_CALLS

# files read at a time; encoded records among which the next one is drawn: so many, and
# of large ones so many bytes
_CYCLE = 16
_SHUFFLE_BUFFER, _BUFFER_BYTES = 2048, 2**30


class Order(NamedTuple):
    """A worker's part of an endless stream of global batches."""

    seed: int
    batch_size: int  # global
    first_step: int = 0
    worker: int = 0
    workers: int = 1

    @property
    def share(self):
        """Rows of a global batch for this worker."""
        return self.batch_size // self.workers

    def positions(self):
        """Yields the positions of this worker's rows in the stream, int64."""
        rows = tf.data.Dataset.counter(self.first_step * self.share)
        begin = self.worker * self.share
        return rows.map(
            lambda row: (row // self.share) * self.batch_size + begin + row % self.share
        )

    def indices(self, count):
        """Yields `(position, index)`: `count` indices once an epoch, reshuffled."""
        last = tf.constant(count - 1, tf.int64)

        def index(position):
            # a permutation without a buffer, which can start anywhere
            seed = tf.stack([tf.constant(self.seed, tf.int64), position // count])
            shuffled = tf.random.experimental.index_shuffle(
                position % count, seed, last
            )
            return position, shuffled

        return self.positions().map(index)


def shuffled_turns(count, epoch, seed):
    """Shuffles the numbers of an epoch's shards."""
    seed = tf.stack([tf.constant(seed, tf.int64), epoch])
    turns = tf.range(count, dtype=tf.int64)
    return tf.random.experimental.stateless_shuffle(turns, seed)


def buffer_size(count, size):
    """Returns how many of `count` records of together `size` bytes are shuffled."""
    return min(_SHUFFLE_BUFFER, max(1, _BUFFER_BYTES * count // max(1, size)))


def shuffled_records(shards, read, count, epoch, seed, buffer=None):
    """Mixes the records of an epoch's shards, and shuffles them in a buffer."""
    # in this function's graph only: the shuffle must not use the global seed
    tf.compat.v1.set_random_seed(1)
    cycle = min(_CYCLE, count)
    records = shards.interleave(
        read,
        cycle_length=cycle,
        num_parallel_calls=min(PARALLEL_CALLS, cycle),
        deterministic=True,
    )
    seed = tf.stack([tf.constant(seed, tf.int64), epoch])
    seed = tf.random.stateless_uniform((), seed, maxval=tf.int64.max, dtype=tf.int64)
    buffer = buffer or _SHUFFLE_BUFFER
    return records.shuffle(buffer, seed, reshuffle_each_iteration=False)
