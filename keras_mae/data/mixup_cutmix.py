"""MixUp (Zhang et al., 2017), CutMix (Yun et al., 2019) and label smoothing of a batch.

As timm's `Mixup` in its mode `batch`: one choice between the two and one weight a
batch, which on the devices of the published runs has 32 images; here for each 32 rows
of the batch of all replicas. There an image's partner is its mirror in the batch; here
it is its neighbour (2k and 2k + 1), so that the result does not depend on how a batch
is divided. Batches are shuffled, so the two are equal in distribution. The box is the
published one, with sides of an even number of pixels; today's timm has odd ones too.

`keras.layers.MixUp` and `keras.layers.CutMix` differ. They have a random state of their
own, and weight, box and partner (perhaps the image itself) for each image. A `factor`
of CutMix isn't alpha: alpha is itself uniform in (0, `factor`). Its box always lies
inside the image, where the published box has a uniform center and is clipped, and its
corners are fractions of pixels, so that labels are weighted only nearly by the share of
pixels.
"""

import tensorflow as tf

from keras_mae.data.seeding import seeds_for
from keras_mae.utils.typing import Tensor

# a device's batch in the published fine-tuning
GROUP = 32


def smoothed_one_hot(
    labels: Tensor, num_classes: int, smoothing: float = 0.1
) -> tf.Tensor:
    """One-hot encodes classes, with label smoothing.

    Args:
        labels: Int tensor of classes, any shape.
        num_classes: Int.
        smoothing: Float in [0, 1], the weight that is spread over all classes; timm's
            and Keras's `label_smoothing`.

    Returns:
        Float32 tensor with a last dimension of `num_classes`, whose sums are 1.

    Raises:
        ValueError: If `smoothing` is out of range.

    Example:

    ```python
    assert np.allclose(smoothed_one_hot([1], 2, smoothing=0.1), [[0.05, 0.95]])
    ```
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be in [0, 1]. Received: {smoothing}")
    off = smoothing / num_classes
    return tf.one_hot(labels, num_classes, 1 - smoothing + off, off, dtype=tf.float32)


def mix(
    images: Tensor,
    labels: Tensor,
    seed: Tensor,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    switch: float = 0.5,
    probability: float = 1.0,
    first_row: Tensor | int = 0,
) -> tuple[tf.Tensor, tf.Tensor]:
    """MixUp and CutMix of a batch: mixes pairs of neighbours, and their labels.

    Each 32 rows draw one choice between the two and one weight. Only the seed and the
    row decide: parts of a batch are mixed as the whole would be.

    Args:
        images: `(B, H, W, C)` float32 tensor; `B` is even.
        labels: `(B, K)` float32 tensor, as `smoothed_one_hot` gives it.
        seed: `(2,)` int tensor; the same seed gives the same result.
        mixup_alpha: Float, the weight of mixup is drawn from Beta(alpha, alpha); 0
            for CutMix only.
        cutmix_alpha: Float, the same for CutMix; 0 for mixup only.
        switch: Float in [0, 1], the probability of CutMix where both are on; timm's
            `mixup_switch_prob`.
        probability: Float in [0, 1], that of mixing 32 rows at all; timm's
            `mixup_prob`.
        first_row: Int, where these rows lie in the batch of all replicas; even.

    Returns:
        A tuple of the mixed images and labels, of the same shapes.

    Raises:
        ValueError: If `B` is known to be odd, or an argument is out of range.

    Example:

    ```python
    images = np.random.normal(size=(4, 32, 32, 3)).astype("float32")
    labels = smoothed_one_hot([0, 1, 2, 3], num_classes=10)
    images, labels = mix(images, labels, seed=[0, 1])
    assert images.shape == (4, 32, 32, 3) and labels.shape == (4, 10)
    ```
    """
    images = tf.convert_to_tensor(images, tf.float32)
    labels = tf.convert_to_tensor(labels, tf.float32)
    if (images.shape[0] or 0) % 2:
        raise ValueError(
            f"The batch size must be even for mixing. Received: {images.shape[0]}"
        )
    if min(mixup_alpha, cutmix_alpha) < 0:
        raise ValueError(
            "mixup_alpha and cutmix_alpha must not be negative. "
            f"Received: {mixup_alpha} and {cutmix_alpha}"
        )
    if not (0 <= switch <= 1 and 0 <= probability <= 1):
        raise ValueError(
            "switch and probability must be in [0, 1]. "
            f"Received: {switch} and {probability}"
        )
    if probability == 0 or mixup_alpha == cutmix_alpha == 0:
        return images, labels
    if min(mixup_alpha, cutmix_alpha) == 0:
        switch = float(mixup_alpha == 0)
    alphas = float(mixup_alpha), float(cutmix_alpha)
    rows = tf.cast(first_row, tf.int64) + tf.range(tf.shape(images)[0], dtype=tf.int64)
    first, last = rows[0] // GROUP, rows[-1] // GROUP

    def draw(group):
        group_seed = tf.random.fold_in(tf.cast(seed, tf.int64), group)
        shape = tf.shape(images)
        return _draw_weights(shape, group_seed, alphas, switch, probability)

    drawn = tf.map_fn(
        draw,
        tf.range(first, last + 1),
        fn_output_signature=(tf.float32, tf.float32, tf.float32, tf.bool),
    )
    inside_rows, inside_columns, share, use_cutmix = (
        tf.gather(values, rows // GROUP - first) for values in drawn
    )
    box = inside_rows[:, :, None] * inside_columns[:, None]  # (B, H, W)
    outside = 1.0 - box
    mean = tf.reduce_mean(outside, axis=(1, 2))
    labels = _blend(labels, tf.where(use_cutmix, mean, share)[:, None])
    weights = tf.where(use_cutmix[:, None, None], outside, share[:, None, None])
    return _blend(images, weights[..., None]), labels


def _draw_weights(shape, seed, alphas, switch, probability):
    """Draws rows and columns of CutMix's box, mixup's weight, and which is used."""
    seeds = seeds_for("mix", seed, 2)
    chances = tf.random.stateless_uniform((4,), seeds[0])
    use_cutmix = chances[0] < switch
    alpha = tf.where(use_cutmix, alphas[1], alphas[0])
    gammas = tf.random.stateless_gamma((2,), seeds[1], alpha)
    # at an alpha near 0 both underflow to 0
    share = tf.math.divide_no_nan(gammas[0], gammas[0] + gammas[1])
    share = tf.where(chances[1] < probability, share, 1.0)
    rows, columns = (
        _inside(shape[axis + 1], tf.sqrt(1.0 - share), chances[axis + 2])
        for axis in range(2)
    )
    return rows, columns, share, use_cutmix


def _inside(length, ratio, chance):
    """Marks with 1 the pixels of an axis inside the box, `(length,)`."""
    side = tf.cast(length, tf.float32)
    half = tf.cast(side * ratio, tf.int32) // 2
    centre = tf.cast(side * chance, tf.int32)
    pixels = tf.range(length)
    inside = (pixels >= centre - half) & (pixels < centre + half)
    return tf.cast(inside, tf.float32)


def _blend(batch, weights):
    """Mixes each item of a batch with its neighbour."""
    neighbours = tf.bitwise.bitwise_xor(tf.range(tf.shape(batch)[0]), 1)
    return batch * weights + tf.gather(batch, neighbours) * (1.0 - weights)
