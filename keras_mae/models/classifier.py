"""The classifier: the pretrained encoder, its pooled tokens, and a linear head."""

import keras
from keras import ops

from keras_mae.models.encoder import MAEEncoder
from keras_mae.models.pretrained import Pretrained
from keras_mae.presets import classifier_config

POOLINGS = ("mean", "cls")


@keras.saving.register_keras_serializable(package="keras_mae")
class MAEClassifier(Pretrained, keras.Model):
    """Classifies images by the tokens of an encoder (paper, appendix A.1 and A.2).

    Args:
        encoder: A `MAEEncoder`; it is shared, not copied.
        num_classes: Int.
        pooling: `"mean"`: the mean of the patches' tokens, CLS left out, then a norm of
            the classifier's own; the encoder's final norm is not used. `"cls"`: the
            CLS token behind the encoder's final norm.
        batch_norm: Whether pooled features are normalized by the statistics of the
            batch, without scale and shift, as for linear probing.
        **kwargs: Those of `keras.Model`.

    Call arguments:
        images: `(B, H, W, C)` float tensor, channels last, normalized as by
            `MAEImageProcessor`.
        training: Whether dropout is active and batch statistics are used.

    Returns:
        `(B, num_classes)` tensor of logits.

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

    def __init__(
        self, encoder, num_classes, pooling="mean", batch_norm=False, **kwargs
    ):
        # no autocast: the encoder takes images as they are
        super().__init__(autocast=False, **kwargs)
        if not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(
                f"num_classes must be a positive int. Received: {num_classes!r}"
            )
        if pooling not in POOLINGS:
            raise ValueError(f"pooling must be mean or cls. Received: {pooling!r}")
        if pooling == "cls" and not encoder.final_norm:
            raise ValueError(
                "pooling='cls' needs an encoder with a final norm. "
                "Received: final_norm=False"
            )
        self.encoder = encoder
        self.num_classes = num_classes
        self.pooling = pooling
        policy = {"dtype": self.dtype_policy}
        self.head_norm = self.batch_norm = None
        if pooling == "mean":
            epsilon = encoder.get_config()["layer_norm_epsilon"]
            self.head_norm = keras.layers.LayerNormalization(
                epsilon=epsilon, name="head_norm", **policy
            )
        if batch_norm:
            # the epsilon and momentum of the published linear probe
            self.batch_norm = keras.layers.BatchNormalization(
                center=False, scale=False, epsilon=1e-6, momentum=0.9, **policy
            )
        self.head = keras.layers.Dense(num_classes, name="head", **policy)
        self.build()

    def build(self, input_shape=None):
        if self.built:
            return
        for layer in (self.head_norm, self.batch_norm, self.head):
            if layer is not None:
                layer.build((None, self.encoder.hidden_dim))
        self.built = True

    @property
    def trainable_weights(self):
        return self._without_unused(super().trainable_weights)

    @property
    def trainable_variables(self):
        return self._without_unused(super().trainable_variables)

    def _without_unused(self, variables):
        """Drops the encoder's final norm where the mean leaves it without gradient."""
        unused = set()
        if self.pooling == "mean":
            unused = {id(weight) for weight in self.encoder.norm.weights}
        return [variable for variable in variables if id(variable) not in unused]

    def call(self, images, training=None):
        if self.pooling == "mean":
            outputs = self.encoder(images, output_hidden_states=True, training=training)
            x = ops.mean(outputs["hidden_states"][-1][:, 1:], axis=1)  # (B, D)
            x = self.head_norm(x)
        else:
            x = self.encoder(images, training=training)[:, 0]  # (B, D)
        if self.batch_norm is not None:
            x = self.batch_norm(x, training=training)
        return self.head(x)

    @classmethod
    def from_sizes(cls, sizes, overrides):
        encoder, head = classifier_config(sizes, overrides)
        if "num_classes" not in head:
            raise ValueError(
                "num_classes must be given where no published head is read"
            )
        encoder = MAEEncoder(**encoder)
        return cls(encoder, dtype=encoder.dtype_policy, **head)

    def get_config(self):
        return {
            **super().get_config(),
            "encoder": keras.saving.serialize_keras_object(self.encoder),
            "num_classes": self.num_classes,
            "pooling": self.pooling,
            "batch_norm": self.batch_norm is not None,
        }

    @classmethod
    def from_config(cls, config):
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return cls(**{**config, "encoder": encoder})
