"""The pretraining loss: mean squared error of the removed patches."""

from keras import ops

from keras_mae.ops.patches import gather_tokens, normalize_patches, patchify
from keras_mae.utils.typing import Size, Tensor


def removed_patch_loss(
    images: Tensor,
    predicted: Tensor,
    patch_size: Size,
    mask: Tensor | None = None,
    ids_removed: Tensor | None = None,
    norm_pix_loss: bool = False,
) -> Tensor:
    """Computes the loss of each image over its removed patches (paper, section 3).

    `sum(mean squared error of a patch * mask) / sum(mask)`. Every row of a mask removes
    equally many patches, so the mean over images is the paper's loss.

    Args:
        images: `(B, H, W, C)` tensor, the originals.
        predicted: `(B, L, P)` tensor, the predicted patches; with `ids_removed`
            `(B, R, P)`, the removed ones alone.
        patch_size: Int or pair `(height, width)`.
        mask: `(B, L)` tensor, 1 = removed, 0 = visible.
        ids_removed: `(B, R)` int tensor, which patches were predicted, instead of
            `mask`.
        norm_pix_loss: Whether each target patch is normalized by its own mean and
            deviation.

    Returns:
        `(B,)` float32 tensor.

    Raises:
        ValueError: Unless one of `mask` and `ids_removed` is given.

    Example:

    ```python
    images = np.zeros((1, 32, 32, 3), "float32")
    loss = removed_patch_loss(
        images, np.ones((1, 2, 48)), 4, ids_removed=np.array([[0, 5]])
    )
    assert float(loss[0]) == 1.0
    ```
    """
    if (mask is None) == (ids_removed is None):
        raise ValueError("Give either mask or ids_removed")
    targets = patchify(ops.cast(images, "float32"), patch_size)  # (B, L, P)
    if ids_removed is not None:
        targets = gather_tokens(targets, ids_removed)  # (B, R, P)
    if norm_pix_loss:
        targets = normalize_patches(targets)
    errors = ops.square(ops.cast(predicted, "float32") - targets)
    if mask is None:
        return ops.mean(errors, axis=(1, 2))
    mask = ops.cast(mask, "float32")
    errors = ops.mean(errors, axis=-1) * mask  # (B, L)
    return ops.sum(errors, axis=-1) / ops.sum(mask, axis=-1)
