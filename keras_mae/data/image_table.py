"""Random access by index to images in tar shards and Arrow tables."""

import hashlib
from collections.abc import Collection
from functools import cached_property

import numpy as np
import tensorflow as tf

from keras_mae.data.encoded_images import IndexedImages


class Table:
    """Base class of files that hold many encoded images, each with a number.

    A subclass defines `__len__`; `place` for errors; `read(number)`, an encoded image;
    `identity(number)`, equal where two tables read the same image; lists of all images'
    `names` in messages, and `keys` (see `IndexedImages`), both bytes; `label_values`, a
    list of integers or of text; and `stats`, which change with its files. `read` is
    called from several threads at a time.
    """

    place: str
    # paths that another kind of source may read too
    data_files: Collection[str] = ()

    @cached_property
    def class_names(self):
        """The names of the classes; `None` where the images only number them."""
        values = self.label_values
        return sorted(set(values)) if isinstance(values[0], str) else None


class ImageTable(IndexedImages):
    """Some or all images of a table; `by_name` takes numbers as names of classes."""

    def __init__(self, table, numbers=None, class_names=None, by_name=False):
        super().__init__()
        self.table = table
        self.place = table.place
        count = len(table)
        self.numbers = np.arange(count) if numbers is None else np.asarray(numbers)
        self._class_names = class_names
        self._by_name = by_name

    def __len__(self):
        return len(self.numbers)

    @property
    def class_names(self):
        if self._by_name:
            return sorted(set(self._label_values))
        return self._class_names or self.table.class_names

    @property
    def has_text_labels(self):
        return isinstance(self._label_values[0], str)

    @property
    def _label_values(self):
        values = self.table.label_values
        return [str(value) for value in values] if self._by_name else values

    @property
    def keys(self):
        keys = self.table.keys
        return [keys[number] for number in self.numbers]

    @property
    def data_files(self):
        return self.table.data_files

    @property
    def shown_names(self):
        names = self.table.names
        return [names[number] for number in self.numbers]

    @property
    def labels(self):
        """`(N,)` int64 array, the classes of all images."""
        values = self._label_values
        if self.has_text_labels:
            turns = {name: turn for turn, name in enumerate(sorted(set(values)))}
            values = [turns[value] for value in values]
        return np.array(values, "int64")[self.numbers]

    def with_classes(self, class_names):
        """Gives the classes 0, 1, ... their names."""
        return ImageTable(self.table, self.numbers, class_names, self._by_name)

    def by_name(self):
        """Takes labels that are numbers as the names of classes."""
        return ImageTable(self.table, self.numbers, by_name=True)

    def chosen(self, indices):
        """Selects images by index, with repetitions."""
        numbers = self.numbers[list(indices)]
        return ImageTable(self.table, numbers, self._class_names, self._by_name)

    def without(self, others):
        """Leaves out images that another collection has."""
        if not isinstance(others, ImageTable):
            return self
        out = {others.table.identity(number) for number in others.numbers}
        kept = [n for n in self.numbers if self.table.identity(n) not in out]
        return ImageTable(self.table, kept, self._class_names, self._by_name)

    def encoded(self, index):
        """Reads an encoded image; TensorFlow has no operation for it."""

        def read(index):
            return self.table.read(int(self.numbers[index]))

        return tf.ensure_shape(tf.numpy_function(read, [index], tf.string), ())

    def fingerprint_rows(self):
        """Yields what changes with the images."""
        yield from self.table.stats
        yield hashlib.sha256(self.numbers.astype("int64").tobytes()).digest()
