"""Split images into patches and back, and normalize patches."""

from numbers import Integral
from typing import Any

from keras import ops

from keras_mae.utils.typing import Grid, Size, Tensor


def as_pair(value: Size, name: str) -> tuple[int, int]:
    """Returns an int or a pair as `(height, width)`; `name` is for the error."""
    pair: Any = (value, value) if isinstance(value, Integral) else value
    try:
        height, width = (int(size) for size in pair)
        whole = (height, width) == tuple(pair)
    except (OverflowError, TypeError, ValueError):  # int() of infinity overflows
        whole = False
    if not whole or height < 1 or width < 1:
        raise ValueError(
            f"{name} must be a positive int or a pair of them (height, width). "
            f"Received: {value!r}"
        )
    return height, width


def grid_shape(image_size: Size, patch_size: Size) -> Grid:
    """Counts an image's patches: `(rows, columns)`."""
    height, width = as_pair(image_size, "image_size")
    patch_height, patch_width = as_pair(patch_size, "patch_size")
    if height % patch_height or width % patch_width:
        raise ValueError(
            "Image height and width must be divisible by the patch's "
            f"({patch_height}, {patch_width}). Received: image_size={(height, width)}"
        )
    return height // patch_height, width // patch_width


def patchify(images: Tensor, patch_size: Size) -> Tensor:
    """Cuts images into flattened patches, row by row.

    A patch is flattened as `(patch_height, patch_width, C)`, channels fastest, the
    order in which the published decoders predict pixels (paper, section 3).

    Args:
        images: `(B, H, W, C)` tensor of any dtype, channels last.
        patch_size: Int or pair `(height, width)`, in pixels.

    Returns:
        `(B, L, patch_height * patch_width * C)` tensor of the same dtype, where `L`
        counts the patches in raster order.

    Raises:
        ValueError: If `images` is not of rank 4, or the patch does not divide it.

    Example:

    ```python
    patches = patchify(np.zeros((2, 224, 160, 3)), patch_size=16)
    assert patches.shape == (2, 140, 768)
    ```
    """
    if len(images.shape) != 4:
        raise ValueError(
            "images must have the shape (batch, height, width, channels). "
            f"Received: images.shape={tuple(images.shape)}"
        )
    patch_height, patch_width = as_pair(patch_size, "patch_size")
    _, height, width, channels = images.shape
    rows, columns = grid_shape((height, width), patch_size)
    x = ops.reshape(
        images, (-1, rows, patch_height, columns, patch_width, channels)
    )  # (B, h, p_h, w, p_w, C)
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))  # (B, h, w, p_h, p_w, C)
    return ops.reshape(
        x, (-1, rows * columns, patch_height * patch_width * channels)
    )  # (B, L, p_h * p_w * C)


def unpatchify(patches: Tensor, patch_size: Size, image_size: Size) -> Tensor:
    """Puts flattened patches back together: the inverse of `patchify`.

    Args:
        patches: `(B, L, patch_height * patch_width * C)` tensor.
        patch_size: Int or pair `(height, width)`, in pixels.
        image_size: Int or pair `(height, width)` of the result, in pixels.

    Returns:
        `(B, H, W, C)` tensor of the same dtype.

    Raises:
        ValueError: If the number of patches or their length does not fit the sizes.

    Example:

    ```python
    images = np.random.rand(2, 32, 16, 3)
    patches = patchify(images, patch_size=4)
    restored = unpatchify(patches, patch_size=4, image_size=(32, 16))
    np.testing.assert_array_equal(restored, images)
    ```
    """
    patch_height, patch_width = as_pair(patch_size, "patch_size")
    rows, columns = grid_shape(image_size, patch_size)
    _, length, values = patches.shape
    if length != rows * columns or values % (patch_height * patch_width):
        raise ValueError(
            f"patches must be (batch, {rows * columns}, "
            f"{patch_height * patch_width} * channels) to fill "
            f"image_size={image_size}. Received: patches.shape={tuple(patches.shape)}"
        )
    channels = values // (patch_height * patch_width)
    x = ops.reshape(
        patches, (-1, rows, columns, patch_height, patch_width, channels)
    )  # (B, h, w, p_h, p_w, C)
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))  # (B, h, p_h, w, p_w, C)
    return ops.reshape(
        x, (-1, rows * patch_height, columns * patch_width, channels)
    )  # (B, H, W, C)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each patch's mean and deviation, float32 `(B, L, 1)`."""
    count = patches.shape[-1]
    if count < 2:
        raise ValueError(
            "Patch normalization needs patches of at least two values. "
            f"Received: patches.shape={tuple(patches.shape)}"
        )
    patches = ops.cast(patches, "float32")
    mean = ops.mean(patches, axis=-1, keepdims=True)
    # keras.ops.var divides by n, torch.var by n - 1
    variance = ops.var(patches, axis=-1, keepdims=True) * (count / (count - 1))
    # plus 1e-6, as in the reference implementation's targets
    return mean, ops.sqrt(variance + 1e-6)


def normalize_patches(patches: Tensor) -> Tensor:
    """Normalizes each patch by its own mean and deviation: `norm_pix_loss` targets.

    Args:
        patches: `(B, L, n)` tensor.

    Returns:
        `(B, L, n)` float32 tensor.

    Raises:
        ValueError: If a patch holds fewer than two values.

    Example:

    ```python
    targets = normalize_patches(np.random.rand(2, 4, 48))
    assert abs(float(np.mean(targets))) < 1e-5
    ```
    """
    mean, deviation = patch_statistics(patches)
    return (ops.cast(patches, "float32") - mean) / deviation


def gather_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """Picks tokens row by row: `out[b, k] = tokens[b, ids[b, k]]`.

    Args:
        tokens: `(B, L, D)` tensor.
        ids: `(B, K)` int tensor, each in [0, L).

    Returns:
        `(B, K, D)` tensor.

    Example:

    ```python
    tokens = np.arange(6.0).reshape(1, 3, 2)
    picked = gather_tokens(tokens, np.array([[2, 0]]))
    np.testing.assert_array_equal(picked, [[[4.0, 5.0], [0.0, 1.0]]])
    ```
    """
    batch, length = ops.shape(tokens)[:2]
    # one gather of whole rows: take_along_axis would index every element
    first = ops.arange(batch, dtype="int32")[:, None] * length
    flat = ops.reshape(tokens, (-1, tokens.shape[-1]))  # (B * L, D)
    return ops.take(flat, ops.cast(ids, "int32") + first, axis=0)  # (B, K, D)
