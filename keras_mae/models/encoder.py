"""The MAE encoder: a Vision Transformer that sees visible patches only."""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import keras
from keras import ops

from keras_mae.layers.masking import PatchMaskMixin, RandomMasking
from keras_mae.layers.patch_embedding import PatchEmbedding
from keras_mae.layers.stochastic_depth import StochasticDepth
from keras_mae.models.mixins import FusedInference, allow_new_layers
from keras_mae.models.pretrained import Pretrained
from keras_mae.models.stack import TransformerStack
from keras_mae.ops.patches import as_pair, grid_shape, patchify
from keras_mae.presets import encoder_config
from keras_mae.utils.devices import has_accelerator
from keras_mae.utils.malloc import tune_malloc
from keras_mae.utils.typing import Grid, Size, Tensor


@keras.saving.register_keras_serializable(package="keras_mae")
class MAEEncoder(PatchMaskMixin, FusedInference, Pretrained, TransformerStack):
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
        drop_path_rate: Float in [0, 1), how often the last block's branches are left
            out in training; linear from 0 at the first one (stochastic depth).
        train_positions: Whether the table of positions is trained, as published
            fine-tuning does and pretraining does not.
        trainable_blocks: Int, how many of the last blocks are trained, as told by
            `freeze_but_last`; by default all of the encoder.
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
        factors: `(B, depth, 2)` tensor, those of `StochasticDepth`; by default
            training draws them.
        return_dict: Whether to always return a dict.
        mask_sampling: `"random"`, `"block"` or `"grid"`, how `mask_ratio` chooses
            patches where no noise is given; see `RandomMasking`.
        training: Whether dropout and stochastic depth are active.

    Returns:
        By default a `(B, 1 + L, hidden_dim)` tensor of features, CLS first. With
        `return_dict`, a mask, or one of the outputs on request, a dict: `latent`
        `(B, 1 + K, hidden_dim)`; when masked, `mask` `(B, L)` float32, `ids_restore`
        and `ids_shuffle` `(B, L)` int32; on request
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
        image_size: Size = 224,
        patch_size: Size = 16,
        num_channels: int = 3,
        hidden_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_dim: int = 3072,
        seed: int | None = None,
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        train_positions: bool = False,
        trainable_blocks: int | None = None,
        **kwargs: Any,
    ) -> None:
        if not has_accelerator():
            # each of our models has an encoder, and weights are the first large tensors
            tune_malloc()
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
            train_positions=train_positions,
            dtype=self.dtype_policy,
            name="patch_embedding",
        )
        self.stochastic_depth = None
        if drop_path_rate:
            self.stochastic_depth = StochasticDepth(
                drop_path_rate, len(self.blocks), seed, name="stochastic_depth"
            )
        self.build((None, *self.image_size, num_channels))
        allow_new_layers(self)
        if trainable_blocks is not None and self.trainable:
            self.freeze_but_last(trainable_blocks)
        self.freeze_parts()

    @property
    def num_patches(self) -> int:
        """Int, the patches of an image of `image_size`."""
        return self.grid[0] * self.grid[1]

    @property
    def patch_dim(self) -> int:
        """Int, the values of a flattened patch."""
        return self.patch_size[0] * self.patch_size[1] * self.num_channels

    def build(self, input_shape: Any) -> None:
        if self.built:
            return
        self.patch_embedding.build((None, self.num_patches, self.patch_dim))
        self.build_stack()
        self.finish_build()

    def call(
        self,
        images: Tensor,
        mask_ratio: float | None = None,
        noise: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int | None = None,
        interpolate: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        factors: Tensor | None = None,
        return_dict: bool = False,
        mask_sampling: str = "random",
        training: bool | None = None,
    ) -> Any:
        grid = self.check_images(images, interpolate)
        patches = patchify(ops.cast(images, "float32"), self.patch_size)  # (B, L, P)
        chosen = {}
        if mask_ratio is not None or mask is not None:
            chosen = self.masking(
                patches,
                mask_ratio=mask_ratio,
                noise=noise,
                mask=mask,
                seed=seed,
                mask_sampling=mask_sampling,
                grid=grid,
            )
        elif noise is not None or seed is not None:
            raise ValueError(
                "noise and seed need mask_ratio. Received: mask_ratio=None"
            )
        ids_keep = chosen.pop("ids_keep", None)
        x = self.patch_embedding(patches, ids_keep=ids_keep, grid=grid)
        if training and factors is None and self.stochastic_depth is not None:
            factors = self.stochastic_depth(x)
        x, hidden_states, attentions = self.run_stack(
            x, training, output_attentions, factors
        )
        outputs = {"latent": x, **chosen}  # (B, 1 + K, D)
        if output_hidden_states:
            outputs["hidden_states"] = tuple(hidden_states)
        if output_attentions:
            outputs["attentions"] = tuple(attentions)
        return outputs if return_dict or len(outputs) > 1 else outputs["latent"]

    def check_images(self, images: Tensor, interpolate: bool = False) -> Grid:
        """Returns the patch grid `(rows, columns)` of images, or raises."""
        wanted = (*self.image_size, self.num_channels)
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[-1] != self.num_channels:
            raise ValueError(
                f"images must be (batch, height, width, {self.num_channels}), channels "
                f"last. Received: images.shape={shape}"
            )
        if None in shape[1:3]:
            raise ValueError(
                "images must have a known height and width: keras.Input("
                f"{wanted}), or dataset.map(lambda x: tf.ensure_shape(x, ...)). "
                f"After batches of {self.image_size}, some of another size may have "
                f"come. Received: images.shape={shape}"
            )
        if not interpolate and shape[1:] != wanted:
            raise ValueError(
                f"images must be (batch, {wanted[0]}, {wanted[1]}, {wanted[2]}); "
                "interpolate=True accepts another size. "
                f"Received: images.shape={shape}"
            )
        return grid_shape(shape[1:3], self.patch_size)

    def feature_maps(
        self,
        images: Tensor,
        layers: Sequence[int] | None = None,
        interpolate: bool = False,
        training: bool | None = None,
    ) -> list[Tensor]:
        """Encodes whole images and lays the patches' tokens out as they lie in them.

        Args:
            images: `(B, H, W, C)` float tensor, as for a call.
            layers: Ints, the blocks whose outputs are wanted: counted from 0, negative
                ones from the end. By default the last one alone.
            interpolate: Whether to accept images of another size than `image_size`.
            training: Whether dropout is active.

        Returns:
            A list of `(B, h, w, hidden_dim)` tensors, one for each of `layers` in their
            order, without CLS. Row and column are the patch's. The last block's map has
            passed the encoder's final norm, where there is one; an earlier block's is
            the block's plain output, to which no norm was applied.

        Raises:
            ValueError: If `layers` is empty or names a block that does not exist, or
                for what a call rejects.

        Example:

        ```python
        encoder = MAEEncoder.from_preset("mae_tiny", image_size=(32, 48))
        images = np.random.rand(2, 32, 48, 3).astype("float32")
        middle, last = encoder.feature_maps(images, layers=(1, -1))
        assert middle.shape == last.shape == (2, 8, 12, 128)
        ```
        """
        numbers = self.block_numbers((-1,) if layers is None else layers)
        rows, columns = self.check_images(images, interpolate)
        outputs = self(
            images,
            interpolate=interpolate,
            output_hidden_states=True,
            training=training,
        )
        # the first hidden state is the embeddings; the last one lacks the norm
        tokens = [*outputs["hidden_states"][1:-1], outputs["latent"]]
        return [
            ops.reshape(
                tokens[number][:, 1:], (-1, rows, columns, self.hidden_dim)
            )  # (B, h, w, D)
            for number in numbers
        ]

    def block_numbers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """Returns block numbers in [0, depth); negative ones count from the end."""
        depth = len(self.blocks)
        try:
            numbers = tuple(operator.index(layer) for layer in layers)
        except TypeError:
            numbers = ()
        if not numbers or not all(-depth <= number < depth for number in numbers):
            raise ValueError(
                f"layers must be one or more block numbers in [{-depth}, {depth - 1}]. "
                f"Received: {layers!r}"
            )
        return tuple(number % depth for number in numbers)

    def draw_factors(
        self, images: Tensor, first_row: Callable[[Tensor], Tensor]
    ) -> dict[str, Tensor]:
        """Draws `factors` of `StochasticDepth` for a replica's batch, if it has any."""
        if self.stochastic_depth is None:
            return {}
        row = first_row(ops.shape(images)[0])
        return {"factors": self.stochastic_depth(images, first_row=row)}

    @property
    def trainable_blocks(self) -> int | None:
        """Int, the argument of `freeze_but_last`; `None` where it was not called."""
        if self.patch_embedding.trainable or not self.trainable:
            return None
        return sum(block.trainable for block in self.blocks)

    def freeze_but_last(self, blocks: int) -> None:
        """Freezes all but the last few blocks (paper, section 4.3, figure 9).

        The final norm stays trainable with them; with 0 blocks all is frozen.

        Args:
            blocks: Int, how many of the last blocks are trained.

        Raises:
            ValueError: If there are not so many.

        Example:

        ```python
        encoder = MAEEncoder.from_preset("mae_tiny")
        encoder.freeze_but_last(1)
        assert not encoder.blocks[-2].trainable and encoder.blocks[-1].trainable
        ```
        """
        if not 0 <= blocks <= len(self.blocks):
            raise ValueError(
                f"blocks must be in [0, {len(self.blocks)}]. Received: {blocks}"
            )
        first = len(self.blocks) - blocks
        self.patch_embedding.trainable = False
        for index, block in enumerate(self.blocks):
            block.trainable = index >= first
        self.norm.trainable = blocks > 0

    @classmethod
    def from_sizes(cls, sizes: Mapping[str, Any], overrides: Mapping[str, Any]) -> Self:
        return cls(**encoder_config(sizes, overrides))

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "num_channels": self.num_channels,
            "seed": self.seed,
            "final_norm": self.final_norm,
            "drop_path_rate": getattr(self.stochastic_depth, "rate", 0.0),
            "train_positions": self.patch_embedding.train_positions,
            "trainable_blocks": self.trainable_blocks,
        }


def check_encoder(encoder: Any) -> None:
    if not isinstance(encoder, MAEEncoder):
        raise ValueError(
            "encoder must be a MAEEncoder, such as a MAEPretrainer's encoder. "
            f"Received: {type(encoder).__name__}"
        )


def check_positive_int(value: Any, name: str) -> int:
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = -1
    if number < 1:
        raise ValueError(f"{name} must be a positive int. Received: {value!r}")
    return number
