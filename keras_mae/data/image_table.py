"""Encoded images in larger files, read by their number: tar shards, Arrow tables."""

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
    list of integers or of text; and `stats`, which change with its files.
    """

    place: str
    data_files: Collection[str] = ()  # that were converted to what the table reads

    @cached_property
    def class_names(self):
        """The names of the classes; `None` where the images only number them."""
        values = self.label_values
        return sorted(set(values)) if isinstance(values[0], str) else None


class ImageTable(IndexedImages):
    """Some or all images of a table."""

    def __init__(self, table, numbers=None, class_names=None):
        super().__init__()
        self.table = table
        self.place = table.place
        count = len(table)
        self.numbers = np.arange(count) if numbers is None else np.asarray(numbers)
        self._class_names = class_names

    def __len__(self):
        return len(self.numbers)

    @property
    def class_names(self):
        return self._class_names or self.table.class_names

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
        values = self.table.label_values
        if isinstance(values[0], str):
            turns = {name: turn for turn, name in enumerate(self.table.class_names)}
            values = [turns[value] for value in values]
        return np.array(values, "int64")[self.numbers]

    def with_classes(self, class_names):
        """Gives the classes 0, 1, ... their names."""
        return ImageTable(self.table, self.numbers, class_names)

    def chosen(self, indices):
        """Selects images by index, with repetitions."""
        return ImageTable(self.table, self.numbers[list(indices)], self._class_names)

    def without(self, others):
        """Leaves out images that another collection has."""
        if not isinstance(others, ImageTable):
            return self
        out = {others.table.identity(number) for number in others.numbers}
        kept = [n for n in self.numbers if self.table.identity(n) not in out]
        return ImageTable(self.table, kept, self._class_names)

    def encoded(self, index):
        """Reads an encoded image; TensorFlow has no operation for it."""

        def read(index):
            return self.table.read(int(self.numbers[index]))

        return tf.ensure_shape(tf.numpy_function(read, [index], tf.string), ())

    def fingerprint_rows(self):
        """Yields what changes with the images."""
        yield from self.table.stats
        yield hashlib.sha256(self.numbers.astype("int64").tobytes()).digest()
