"""Seeds of an image's own, one for each use."""

import tensorflow as tf

# each use's number; to change one is to change what its seeds draw
_USES = {"rand_augment": 1, "random_erasing": 2, "mix": 3}


def seeds_for(use, seed, count):
    """Derives seeds, so that callers may give every augmentation the same seed.

    Two draws from one seed would be the same draw twice: a crop far to the left would
    always turn clockwise.

    Args:
        use: String, `"rand_augment"`, `"random_erasing"` or `"mix"`.
        seed: `(2,)` int tensor.
        count: Int.

    Returns:
        `(count, 2)` int64 tensor.

    Example:

    ```python
    assert seeds_for("mix", [0, 1], 3).shape == (3, 2)
    ```
    """
    number = tf.constant(_USES[use], tf.int64)
    return tf.random.split(tf.random.fold_in(tf.cast(seed, tf.int64), number), count)
