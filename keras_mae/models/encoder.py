"""The MAE encoder: a Vision Transformer that sees visible patches only."""

import keras
from keras import ops

from keras_mae.layers.masking import RandomMasking, TakesPatchMask
from keras_mae.layers.patch_embedding import PatchEmbedding
from keras_mae.layers.transformer import run_blocks
from keras_mae.models.pretrained import Pretrained
from keras_mae.models.stack import TransformerStack
from keras_mae.patches import as_pair, grid_shape, patchify
from keras_mae.presets import encoder_config


@keras.saving.register_keras_serializable(package="keras_mae")
class MAEEncoder(TakesPatchMask, Pretrained, TransformerStack):
    """Vision Transformer whose plain call never masks (paper, section 3).

    Called with images alone it gives the tokens of every patch in raster order, the
    same at each call. Masking is asked for: by `mask_ratio` (with `seed` or `noise`)
    or by an explicit `mask`.

    Args:
        image_size: Int or pair `(height, width)`, in pixels.
        patch_size: Int or pair `(height, width)` that divides the image.
        num_channels: Int, channels of an image.
        hidden_dim: Int, the tokens' width; a multiple of 4 and of `num_heads`.
        depth: Int, number of blocks.
        num_heads: Int.
        mlp_dim: Int, the blocks' MLP width.
        seed: Int or `None`, the seed of the masks drawn without one.
        final_norm: Whether a norm follows the last block; encoders that were
            fine-tuned with mean pooling have none.
        **kwargs: Those of `TransformerStack` (activation, dropouts, epsilon,
            initializers) and of `keras.Model`.

    Call arguments:
        images: `(B, H, W, C)` float tensor, channels last, normalized as by
            `MAEImageProcessor`.
        mask_ratio: Float in [0, 1), the share of patches to remove.
        noise: `(B, L)` tensor to sort instead of drawing one.
        mask: `(B, L)` tensor, 1 = removed, 0 = visible.
        seed: Int; the same seed gives the same mask at every call.
        interpolate: Whether to accept images of another size than `image_size`, with
            positions resized in two dimensions.
        output_hidden_states: Whether to return `hidden_states`.
        output_attentions: Whether to return `attentions`.
        training: Whether dropout is active.

    Returns:
        Asked for nothing but features: a `(B, 1 + L, hidden_dim)` tensor, CLS first.
        Otherwise a dict: `latent` `(B, 1 + K, hidden_dim)`; when masked, `mask`
        `(B, L)` float32 and `ids_restore` `(B, L)` int32; on request
        `hidden_states`, a tuple of `depth + 1` tensors (the embeddings, then each
        block's output, before the final norm), and `attentions`, a tuple of `depth`
        tensors `(B, num_heads, 1 + K, 1 + K)`.

    Raises:
        ValueError: If an image has another number of channels or another size, or if
            the masking arguments contradict each other.

    Example:

    ```python
    encoder = MAEEncoder.from_preset("mae_tiny")
    images = np.random.rand(2, 32, 32, 3).astype("float32")
    tokens = encoder(images)
    assert tokens.shape == (2, 65, 128)
    outputs = encoder(images, mask_ratio=0.75, seed=0)
    assert outputs["latent"].shape == (2, 17, 128)
    ```
    """

    def __init__(
        self,
        image_size=224,
        patch_size=16,
        num_channels=3,
        hidden_dim=768,
        depth=12,
        num_heads=12,
        mlp_dim=3072,
        seed=None,
        final_norm=True,
        **kwargs,
    ):
        # no autocast: images become targets, which stay float32
        super().__init__(
            hidden_dim,
            depth,
            num_heads,
            mlp_dim,
            final_norm=final_norm,
            autocast=False,
            **kwargs,
        )
        self.image_size = as_pair(image_size, "image_size")
        self.patch_size = as_pair(patch_size, "patch_size")
        self.grid = grid_shape(image_size, patch_size)
        self.num_channels = num_channels
        self.seed = seed
        self.masking = RandomMasking(seed=seed, name="masking")
        self.patch_embedding = PatchEmbedding(
            hidden_dim,
            self.grid,
            kernel_initializer=self._block_config["kernel_initializer"],
            initializer_range=self.initializer_range,
            dtype=self.dtype_policy,
            name="patch_embedding",
        )
        self.build((None, *self.image_size, num_channels))

    @property
    def num_patches(self):
        """Int, the patches of an image of `image_size`."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_dim(self):
        """Int, the values of a flattened patch."""
        return self.patch_size[0] * self.patch_size[1] * self.num_channels

    def build(self, input_shape):
        if self.built:
            return
        self.patch_embedding.build((None, self.num_patches, self.patch_dim))
        self.build_stack()
        self.finish_build()

    def call(
        self,
        images,
        mask_ratio=None,
        noise=None,
        mask=None,
        seed=None,
        interpolate=False,
        output_hidden_states=False,
        output_attentions=False,
        training=None,
    ):
        grid = self.check_images(images, interpolate)
        patches = patchify(ops.cast(images, "float32"), self.patch_size)  # (B, L, P)
        chosen = {}
        if mask_ratio is not None or mask is not None:
            chosen = self.masking(
                patches, mask_ratio=mask_ratio, noise=noise, mask=mask, seed=seed
            )
        elif noise is not None or seed is not None:
            raise ValueError("noise and seed draw a mask: give mask_ratio beside them")
        ids_keep = chosen.pop("ids_keep", None)
        x = self.patch_embedding(patches, ids_keep=ids_keep, grid=grid)
        x, hidden_states, attentions = run_blocks(self.blocks, x, training=training)
        outputs = {"latent": self.norm(x), **chosen}  # (B, 1 + K, D)
        if output_hidden_states:
            outputs["hidden_states"] = tuple(hidden_states)
        if output_attentions:
            outputs["attentions"] = tuple(attentions)
        return outputs if len(outputs) > 1 else outputs["latent"]

    def check_images(self, images, interpolate=False):
        """Checks that images fit the model.

        Args:
            images: `(B, H, W, C)` tensor.
            interpolate: Whether another height and width is accepted.

        Returns:
            Pair `(rows, columns)`, the patch grid of the images.

        Raises:
            ValueError: If rank, channels, size or divisibility do not fit.
        """
        wanted = (*self.image_size, self.num_channels)
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[-1] != self.num_channels:
            raise ValueError(
                f"images must be (batch, height, width, {self.num_channels}), channels "
                f"last. Received: images.shape={shape}"
            )
        if not interpolate and shape[1:] != wanted:
            raise ValueError(
                f"images must be (batch, {wanted[0]}, {wanted[1]}, {wanted[2]}); "
                "interpolate=True accepts another size. "
                f"Received: images.shape={shape}"
            )
        return grid_shape(shape[1:3], self.patch_size)

    @classmethod
    def from_sizes(cls, sizes, overrides):
        return cls(**encoder_config(sizes, overrides))

    def get_config(self):
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "num_channels": self.num_channels,
            "seed": self.seed,
            "final_norm": self.final_norm,
        }
