"""Corrupt images in a pipeline: skip, log and count them, and stop at a limit."""

import logging
import threading

import tensorflow as tf

from keras_mae.data.parallelism import PARALLEL_CALLS

_DEFAULT_LIMIT = 100
_NAMES_SHOWN = 5

_logger = logging.getLogger("keras_mae")


class CorruptImages:
    """Collects images that could not be read.

    Each is logged once, as a warning of the logger `keras_mae`. Nothing is raised while
    images are read: the training loop calls `check` from time to time.

    Args:
        limit: Int, how many corrupt images are tolerated.

    Raises:
        ValueError: If `limit` is negative.

    Example:

    ```python
    corrupt = CorruptImages(limit=1)
    corrupt.report("cat.jpg")
    corrupt.report("cat.jpg")
    assert corrupt.count == 1 and corrupt.names == ["cat.jpg"]
    corrupt.check()
    ```
    """

    def __init__(self, limit: int = _DEFAULT_LIMIT) -> None:
        if limit < 0:
            raise ValueError(f"limit must not be negative. Received: {limit}")
        self.limit = limit
        self._names: dict[str, None] = {}
        self._empty_batch = False
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """List of str, the corrupt images in the order in which they were read."""
        with self._lock:
            return list(self._names)

    @property
    def count(self) -> int:
        """Int, how many different images were corrupt."""
        return len(self._names)

    def report(self, name: str) -> None:
        """Counts and logs an image that could not be read."""
        with self._lock:
            if name in self._names:
                return
            self._names[name] = None
            count = len(self._names)
        # the first past the limit is logged too; after it the run stops
        if count <= self.limit + 1:
            _logger.warning("Skipped corrupt image %d: %s", count, name)

    def report_empty_batch(self) -> None:
        """Records that no image of a batch could be read."""
        self._empty_batch = True

    def check(self) -> None:
        """Raises an error if too many images are corrupt.

        Raises:
            ValueError: If there are more than `limit`, or if all images of a batch are
                corrupt.
        """
        names = self.names
        shown = ", ".join(names[:_NAMES_SHOWN])
        shown += ", ..." if len(names) > _NAMES_SHOWN else ""
        if len(names) > self.limit:
            raise ValueError(
                f"At most {self.limit} corrupt images are tolerated. "
                f"Received: {len(names)}: {shown}"
            )
        if self._empty_batch:
            raise ValueError(
                f"No image of a batch could be read; {len(names)} are corrupt: {shown}"
            )


class Guard:
    """Reports corrupt images to a `CorruptImages`, else stops at the default limit."""

    def __init__(self, corrupt=None):
        self._strict = corrupt is None
        self.corrupt = CorruptImages() if corrupt is None else corrupt

    def read(self, read, items, name):
        """Reads a batch's items; returns results, zeros for bad ones, and good rows."""
        count = tf.shape(tf.nest.flatten(items)[0], tf.int64)[0]
        numbered = tf.data.Dataset.from_tensor_slices((tf.range(count), items))
        results = numbered.map(
            lambda row, item: (row, read(item)), num_parallel_calls=PARALLEL_CALLS
        )
        nothing = tf.nest.map_structure(
            lambda spec: tf.zeros((0, *spec.shape), spec.dtype), results.element_spec
        )
        # a data set catches errors without Python; one for each image would cost a
        # third of the time that decoding takes
        found = results.ignore_errors().batch(count)
        found = found.concatenate(tf.data.Dataset.from_tensors(nothing))
        rows, found = found.take(1).get_single_element()

        def fill():
            bad = tf.sets.difference(tf.range(count)[None], rows[None]).values
            names = name(
                tf.nest.map_structure(lambda part: tf.gather(part, bad), items)
            )
            reported = tf.py_function(self._report, [names], [])
            with tf.control_dependencies([] if reported is None else [reported]):
                return tf.nest.map_structure(self._scatter(rows, count), found)

        every = tf.size(rows, tf.int64) == count
        filled = tf.cond(every, lambda: found, fill)
        length = tf.nest.flatten(items)[0].shape[:1]
        good = self._scatter(rows, count)(tf.ones_like(rows, tf.bool))
        return tf.nest.map_structure(
            lambda part: tf.ensure_shape(part, length + part.shape[1:]), (filled, good)
        )

    @staticmethod
    def _scatter(rows, count):
        """Returns a function that puts its argument into `rows` of `count`, else 0."""
        return lambda part: tf.scatter_nd(
            rows[:, None], part, tf.stack([count, *part.shape[1:]])
        )

    def replace_corrupt(self, batch, good):
        """Replaces corrupt images of a batch by good ones."""
        rows = tf.cast(tf.where(good)[:, 0], tf.int32)

        def keep():
            return tf.nest.map_structure(tf.identity, batch)

        def fill():
            turn = tf.cumsum(tf.cast(~good, tf.int32), exclusive=True) % tf.size(rows)
            turn = tf.where(good, tf.range(tf.size(good)), tf.gather(rows, turn))
            return tf.nest.map_structure(lambda tensor: tf.gather(tensor, turn), batch)

        def give_up():
            tf.py_function(self._report_empty_batch, [], [])
            return keep()

        return tf.cond(
            tf.reduce_all(good), keep, lambda: tf.cond(tf.size(rows) > 0, fill, give_up)
        )

    def _report(self, names):
        for name in names.numpy():
            self.corrupt.report(name.decode(errors="replace"))
            if self._strict:
                self.corrupt.check()

    def _report_empty_batch(self):
        self.corrupt.report_empty_batch()
        if self._strict:
            self.corrupt.check()
