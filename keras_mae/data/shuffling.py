"""Which image comes when: decided by the seed and the position alone."""

from typing import NamedTuple

import tensorflow as tf


class Order(NamedTuple):
    """Where a worker's part of an endless stream of global batches begins.

    `batch_size` is that of a global batch; worker `worker` of `workers` takes the rows
    from `worker * share` to `(worker + 1) * share` of each.
    """

    seed: int
    batch_size: int
    first_step: int = 0
    worker: int = 0
    workers: int = 1

    @property
    def share(self):
        """Int, rows of a global batch that this worker takes."""
        return self.batch_size // self.workers

    def positions(self):
        """Counts this worker's rows."""
        rows = tf.data.Dataset.counter(self.first_step * self.share)
        begin = self.worker * self.share
        return rows.map(
            lambda row: (row // self.share) * self.batch_size + begin + row % self.share
        )

    def indices(self, count):
        """Visits each of `count` indices once an epoch, in an order of its own each."""
        last = tf.constant(count - 1, tf.int64)

        def index(position):
            # a permutation that is computed, not stored: no buffer, and any start
            seed = tf.stack([tf.constant(self.seed, tf.int64), position // count])
            shuffled = tf.random.experimental.index_shuffle(
                position % count, seed, last
            )
            return position, shuffled

        return self.positions().map(index)
