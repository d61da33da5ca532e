"""The classifier: the pretrained encoder, its pooled tokens, and a linear head."""

from collections.abc import Mapping
from typing import Any, Self

import keras
from keras import ops

from keras_mae.layers.freezing import KeepsFrozenParts
from keras_mae.models.encoder import MAEEncoder, check_encoder, check_positive_int
from keras_mae.models.features import pooled_tokens
from keras_mae.models.mixins import (
    Adaptable,
    ExcludesUnusedWeights,
    FusedInference,
    allow_new_layers,
)
from keras_mae.models.pretrained import Pretrained
from keras_mae.presets import PROBE_EPSILON, check_num_classes, classifier_config
from keras_mae.trainers.train_step import TrainStep, warn_of_integers
from keras_mae.utils.typing import Tensor

POOLINGS = ("mean", "cls")
# the published deviations of a fresh head: fine-tuned, and probed
FINE_TUNED_RANGE, PROBED_RANGE = 2e-5, 0.01


def probe_norm(**policy: Any) -> keras.layers.Layer:
    """Builds the batch norm, without scale and shift, of the published linear probe."""
    return keras.layers.BatchNormalization(
        center=False, scale=False, epsilon=PROBE_EPSILON, momentum=0.9, **policy
    )


def _head_policy(policy):
    """Float32 where variables are, so that mixed precision is the encoder's alone."""
    return "float32" if policy.variable_dtype == "float32" else policy


@keras.saving.register_keras_serializable(package="keras_mae")
class MAEClassifier(
    ExcludesUnusedWeights,
    Adaptable,
    FusedInference,
    TrainStep,
    Pretrained,
    KeepsFrozenParts,
    keras.Model,
):
    """Classifies images by the tokens of an encoder (paper, appendix A.1 and A.2).

    Args:
        encoder: A `MAEEncoder`; it is shared, not copied.
        num_classes: Int.
        pooling: `"mean"`: the mean of the patches' tokens, CLS left out, then a norm of
            the classifier's own; the encoder's final norm is not used. `"cls"`: the
            CLS token behind the encoder's final norm.
        batch_norm: Whether pooled features are normalized by the statistics of the
            batch, without scale and shift, as for linear probing.
        head_dropout_rate: Float, dropout of what the head sees.
        head_range: Float, the deviation of the normal that draws the head's kernel; by
            default as published, 2e-5, or 0.01 behind `batch_norm`.
        **kwargs: Those of `keras.Model`.

    Call arguments:
        images: `(B, H, W, C)` float tensor, channels last, normalized as by
            `MAEImageProcessor`.
        factors: `(B, depth, 2)` tensor, those of `StochasticDepth`; by default training
            draws them where the encoder has a `drop_path_rate`.
        training: Whether dropout and stochastic depth are active and batch statistics
            are used.

    Returns:
        `(B, num_classes)` tensor of logits, float32 under every dtype policy.

    Raises:
        ValueError: If `num_classes` or `pooling` is wrong, or the encoder has no final
            norm for `"cls"`.

    Example:

    ```python
    encoder = MAEEncoder.from_preset("mae_tiny")
    model = MAEClassifier(encoder, num_classes=10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"])
    images = np.random.rand(4, 32, 32, 3).astype("float32")
    model.fit(images, np.array([3, 1, 4, 1]), verbose=0)
    assert model(images).shape == (4, 10)
    ```
    """

    has_head = True

    def __init__(
        self,
        encoder: MAEEncoder,
        num_classes: int,
        pooling: str = "mean",
        batch_norm: bool = False,
        head_dropout_rate: float = 0.0,
        head_range: float | None = None,
        **kwargs: Any,
    ) -> None:
        check_encoder(encoder)
        # no autocast: the encoder takes images as they are
        super().__init__(autocast=False, **kwargs)
        num_classes = check_positive_int(num_classes, "num_classes")
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be mean or cls. Received: {pooling!r}")
        if pooling == "cls" and not encoder.final_norm:
            raise ValueError(
                "pooling='cls' needs an encoder with a final norm. "
                "Received: final_norm=False"
            )
        self.encoder = encoder
        self.num_classes = num_classes
        # what `from_pretrained` reads and `save_pretrained` writes beside the weights
        self.class_names: tuple[str, ...] | None = None
        self.pooling = pooling
        policy = {"dtype": self.dtype_policy, "trainable": self.trainable}
        self.head_norm: Any = None
        self.batch_norm: Any = None
        if pooling == "mean":
            epsilon = encoder.get_config()["layer_norm_epsilon"]
            self.head_norm = keras.layers.LayerNormalization(
                epsilon=epsilon, name="head_norm", **policy
            )
        if batch_norm:
            self.batch_norm = probe_norm(**policy)
        self.head_dropout = keras.layers.Dropout(head_dropout_rate, **policy)
        if head_range is None:
            head_range = PROBED_RANGE if batch_norm else FINE_TUNED_RANGE
        self.head_range = head_range
        self.head = keras.layers.Dense(
            num_classes,
            # published as truncated, but at 2: that is no cut
            kernel_initializer=keras.initializers.RandomNormal(stddev=head_range),
            name="head",
            # logits of half precision would tie, also before they are cast
            **{**policy, "dtype": _head_policy(self.dtype_policy)},
        )
        self.build()
        self.freeze_parts()
        allow_new_layers(self)

    def build(self, input_shape: Any = None) -> None:
        if self.built:
            return
        for layer in (self.head_norm, self.batch_norm, self.head):
            if layer is not None:
                layer.build((None, self.encoder.hidden_dim))
        self.built: bool = True

    def unused_layers(self) -> list[keras.Layer]:
        """Lists the encoder's final norm where the mean leaves it without gradient."""
        return [self.encoder.norm] if self.pooling == "mean" else []

    def call(
        self,
        images: Tensor,
        factors: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        x = self.pooled(images, factors=factors, training=training)
        if self.batch_norm is not None:
            x = self.batch_norm(x, training=training)
        return ops.cast(self.head(self.head_dropout(x, training=training)), "float32")

    def pooled(
        self,
        images: Tensor,
        factors: Tensor | None = None,
        training: bool | None = None,
    ) -> Tensor:
        """Computes the feature of each image that the head sees.

        Args:
            images: `(B, H, W, C)` float tensor, as for a call.
            factors: As for a call.
            training: As for a call.

        Returns:
            `(B, hidden_dim)` tensor: the mean behind its norm, or CLS.

        Example:

        ```python
        encoder = MAEEncoder.from_preset("mae_tiny")
        model = MAEClassifier(encoder, num_classes=10, pooling="cls")
        assert model.pooled(np.zeros((2, 32, 32, 3))).shape == (2, 128)
        ```
        """
        options = {"factors": factors, "training": training}
        return pooled_tokens(
            self.encoder, images, self.pooling, self.head_norm, **options
        )

    def training_inputs(self, data: Any) -> dict[str, Tensor]:
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        if labels is None:
            raise ValueError(
                "A batch must be (images, labels). Received: images without labels"
            )
        warn_of_integers(images)
        inputs = {"images": images, "labels": labels, "weights": weights}
        inputs.update(self.encoder.draw_factors(images, self.first_row))
        return {name: value for name, value in inputs.items() if value is not None}

    def training_loss(
        self,
        images: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        factors: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        logits = self(images, factors=factors, training=True)
        loss = self.compute_loss(images, labels, logits, weights)
        return self.unscaled(loss), logits

    def track(self, loss: Tensor, logits: Tensor, data: Any) -> dict[str, Tensor]:
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        share = ops.shape(images)[0]
        if weights is not None and self._is_weighted_mean():
            share = ops.sum(weights)
        self._loss_tracker.update_state(loss, sample_weight=share)
        return self.compute_metrics(images, labels, logits, weights)

    def _is_weighted_mean(self):
        """Whether a batch's loss is a mean over its weights, not over its rows."""
        reduction = getattr(self.loss, "reduction", None)
        return reduction == "mean_with_sample_weight"

    def evaluation(self, data: Any) -> dict[str, Tensor]:
        images, labels, weights = keras.utils.unpack_x_y_sample_weight(data)
        logits = self(images, training=False)
        loss = self.compute_loss(images, labels, logits, weights, training=False)
        return self.track(self.unscaled(loss), logits, data)

    @classmethod
    def from_sizes(cls, sizes: Mapping[str, Any], overrides: Mapping[str, Any]) -> Self:
        encoder, head = classifier_config(sizes, overrides)
        check_num_classes(head)
        encoder = MAEEncoder(**encoder)
        return cls(encoder, dtype=encoder.dtype_policy, **head)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "num_classes": self.num_classes,
            "pooling": self.pooling,
            "batch_norm": self.batch_norm is not None,
            "head_dropout_rate": self.head_dropout.rate,
            "head_range": self.head_range,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return super().from_config({**config, "encoder": encoder})
