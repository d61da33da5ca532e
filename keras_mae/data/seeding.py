"""Seeds of an image's own, one for each use."""

import tensorflow as tf

# each use's number; to change one is to change what its seeds draw
_USES = {"rand_augment": 1, "random_erasing": 2, "mix": 3}


def seeds_for(use, seed, count):
    """Derives seeds, so that callers may give every augmentation the same seed."""
    number = tf.constant(_USES[use], tf.int64)
    return tf.random.split(tf.random.fold_in(tf.cast(seed, tf.int64), number), count)
