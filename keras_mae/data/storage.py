"""Files on this machine or on any storage that TensorFlow reads."""

import os

import tensorflow as tf


def real_path(path):
    """Follows links, where the path is one of this machine."""
    return os.path.realpath(path) if os.path.exists(path) else path


def open_unbuffered(path):
    """Opens a file for reading here and there: a buffer would read what is skipped."""
    if os.path.exists(path):
        return open(path, "rb", 0)
    return tf.io.gfile.GFile(path, "rb")
