"""Corrupt images in a pipeline: skip, log and count them, and stop at a limit."""

import logging
import threading

import tensorflow as tf

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
    """Reports corrupt images of a graph to a `CorruptImages`.

    Without one the pipeline itself stops at the default limit.
    """

    def __init__(self, corrupt=None):
        self._strict = corrupt is None
        self.corrupt = CorruptImages() if corrupt is None else corrupt

    def read(self, read, name, shape, label=None):
        """Returns an image, or zeros and a report; its label; whether it is good."""
        no_label = () if label is None else (tf.constant(0, tf.int64),)

        def failed(_):
            reported = tf.py_function(self._report, [name], [])
            with tf.control_dependencies([] if reported is None else [reported]):
                return tf.zeros(shape), *no_label, tf.constant(False)

        def succeeded(_):
            labels = () if label is None else (label(),)
            return tf.ensure_shape(read(), shape), *labels, tf.constant(True)

        # a data set of one element catches errors without Python
        one = tf.data.Dataset.from_tensors(0)
        good = one.map(succeeded)
        both = good.ignore_errors().concatenate(one.map(failed))
        return both.take(1).get_single_element()

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

    def _report(self, name):
        self.corrupt.report(name.numpy().decode(errors="replace"))
        if self._strict:
            self.corrupt.check()

    def _report_empty_batch(self):
        self.corrupt.report_empty_batch()
        if self._strict:
            self.corrupt.check()
