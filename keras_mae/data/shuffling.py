"""Shuffling that depends only on the seed and the position in the stream."""

from typing import NamedTuple

import tensorflow as tf


class Order(NamedTuple):
    """A worker's part of an endless stream of global batches.

    Worker `worker` of `workers` takes the rows from `worker * share` to
    `(worker + 1) * share` of each batch.
    """

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
