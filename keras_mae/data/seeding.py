"""Independent random seeds for each augmentation of an image."""

import tensorflow as tf

# changing a number changes what its seeds draw
_USES = {"rand_augment": 1, "random_erasing": 2, "mix": 3, "flip": 4}


def seeds_for(use, seed, count):
    """Derives `count` seeds; augmentations of one seed would else be correlated."""
    number = tf.constant(_USES[use], tf.int64)
    return tf.random.split(tf.random.fold_in(tf.cast(seed, tf.int64), number), count)
