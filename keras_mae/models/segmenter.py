"""The segmenter: feature maps of the pretrained encoder, and a class for each pixel."""

from collections.abc import Sequence
from typing import Any, Self

import keras
from keras import ops

from keras_mae.layers.freezing import KeepsFrozenParts
from keras_mae.models.encoder import MAEEncoder, check_encoder, check_positive_int
from keras_mae.models.mixins import (
    Adaptable,
    ExcludesUnusedWeights,
    FusedInference,
    allow_new_layers,
)
from keras_mae.ops.activations import gelu
from keras_mae.ops.patches import unpatchify
from keras_mae.utils.typing import Tensor


@keras.saving.register_keras_serializable(package="keras_mae")
class MAESegmenter(
    ExcludesUnusedWeights, Adaptable, FusedInference, KeepsFrozenParts, keras.Model
):
    """Classifies every pixel by the feature maps of an encoder.

    Each chosen map passes a norm of its own; joined they are projected patch by patch,
    then a GELU and a linear map to the logits of all the patch's pixels, as the decoder
    predicts pixels: a mask is as sharp as the image, whatever the patch.

    Args:
        encoder: A `MAEEncoder`; it is shared, not copied.
        num_classes: Int, background included.
        layers: Ints, the blocks whose maps are joined, as in
            `MAEEncoder.feature_maps`. What comes behind the last of them does not
            count, and is not trained.
        hidden_dim: Int, the width of the projection.
        **kwargs: Those of `keras.Model`.

    Call arguments:
        images: `(B, H, W, C)` float tensor, channels last, normalized as by
            `MAEImageProcessor`.
        interpolate: Whether to accept images of another size than the encoder's.
        training: Whether the encoder's dropout is active.

    Returns:
        `(B, H, W, num_classes)` tensor of logits in the compute dtype: bfloat16 under
        `mixed_bfloat16`. Keras's losses compute in float32 from there.

    Raises:
        ValueError: If `num_classes`, `layers` or `hidden_dim` is wrong, or for images
            that the encoder rejects.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
    model = MAESegmenter(encoder, num_classes=3, layers=(1, 3))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss)
    images = np.random.rand(4, 32, 32, 3).astype("float32")
    model.fit(images, np.random.randint(0, 3, (4, 32, 32)), verbose=0)
    assert model(images).shape == (4, 32, 32, 3)
    ```
    """

    def __init__(
        self,
        encoder: MAEEncoder,
        num_classes: int,
        layers: Sequence[int] = (-1,),
        hidden_dim: int = 256,
        **kwargs: Any,
    ) -> None:
        check_encoder(encoder)
        # no autocast: the encoder takes images as they are
        super().__init__(autocast=False, **kwargs)
        self.encoder = encoder
        self.num_classes = num_classes = check_positive_int(num_classes, "num_classes")
        self.hidden_dim = hidden_dim = check_positive_int(hidden_dim, "hidden_dim")
        # Keras's own `layers` lists sublayers
        self.block_numbers = encoder.block_numbers(layers)
        policy = {"dtype": self.dtype_policy, "trainable": self.trainable}
        self.projection = keras.layers.Dense(hidden_dim, name="projection", **policy)
        epsilon = encoder.get_config()["layer_norm_epsilon"]
        # the output of a block grows with depth and with training
        self.norms = [
            keras.layers.LayerNormalization(
                epsilon=epsilon, name=f"norm_{index}", **policy
            )
            for index in range(len(self.block_numbers))
        ]
        pixels = encoder.patch_size[0] * encoder.patch_size[1]
        self.head = keras.layers.Dense(pixels * num_classes, name="head", **policy)
        self.build()
        self.freeze_parts()
        allow_new_layers(self)

    def build(self, input_shape: Any = None) -> None:
        if self.built:
            return
        width = self.encoder.hidden_dim
        for norm in self.norms:
            norm.build((None, None, None, width))
        self.projection.build((None, None, None, len(self.norms) * width))
        self.head.build((None, None, None, self.hidden_dim))
        self.built: bool = True

    def unused_layers(self) -> list[keras.Layer]:
        """Lists what lies behind the last chosen block, and has no gradient."""
        unused = list(self.encoder.blocks[max(self.block_numbers) + 1 :])
        return [*unused, self.encoder.norm] if unused else []

    def call(
        self, images: Tensor, interpolate: bool = False, training: bool | None = None
    ) -> Tensor:
        maps = self.encoder.feature_maps(
            images, self.block_numbers, interpolate=interpolate, training=training
        )
        maps = [norm(one) for norm, one in zip(self.norms, maps, strict=True)]
        x = self.projection(ops.concatenate(maps, axis=-1))  # (B, h, w, hidden_dim)
        x = self.head(gelu(x))  # (B, h, w, p_h * p_w * classes)
        _, rows, columns, values = x.shape
        x = ops.reshape(x, (-1, rows * columns, values))  # (B, L, p_h * p_w * classes)
        # (B, H, W, classes)
        return unpatchify(x, self.encoder.patch_size, images.shape[1:3])

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "num_classes": self.num_classes,
            "layers": self.block_numbers,
            "hidden_dim": self.hidden_dim,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return super().from_config({**config, "encoder": encoder})
