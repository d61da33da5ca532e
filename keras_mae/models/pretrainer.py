"""MAEPretrainer: encoder, decoder, the loss on removed patches, and its train step."""

from collections.abc import Mapping
from typing import Any, Self

import keras
from keras import ops

from keras_mae.layers.masking import (
    PatchMaskMixin,
    check_mask_ratio,
    gather_tokens,
)
from keras_mae.models.decoder import MAEDecoder
from keras_mae.models.encoder import MAEEncoder
from keras_mae.models.mixins import FusedInference
from keras_mae.models.pretrained import Pretrained
from keras_mae.ops.patches import (
    grid_shape,
    normalize_patches,
    patch_statistics,
    patchify,
    unpatchify,
)
from keras_mae.presets import pretrainer_config
from keras_mae.trainers.train_step import TrainStep
from keras_mae.utils.typing import Tensor

# evaluation always removes the same patches, so that epochs compare
EVALUATION_SEED = 0


def _images(data):
    """Takes the images out of a batch: labels and weights mean nothing here."""
    images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    if not hasattr(images, "shape"):
        keys = sorted(images) if isinstance(images, dict) else type(images).__name__
        raise ValueError(
            "A batch must be images or (images, labels); map a dataset of dicts, "
            f"as by lambda batch: batch['image']. Received: {keys}"
        )
    return images


@keras.saving.register_keras_serializable(package="keras_mae")
class MAEPretrainer(PatchMaskMixin, FusedInference, TrainStep, Pretrained, keras.Model):
    """Masked autoencoder for pretraining with `fit` (He et al. 2021).

    Each step removes a random share of the patches, encodes the visible ones,
    reconstructs the pixels of all, and is scored on the removed ones (paper, section
    3): `sum(mean squared error of a patch * mask) / sum(mask)`. The model brings this
    loss itself: in `compile`, `loss` and `metrics` have no effect, nor have labels and
    sample weights in `fit`.

    Args:
        encoder: A `MAEEncoder`.
        decoder: A `MAEDecoder` for the same patches.
        mask_ratio: Float in [0, 1), the share of patches to remove; 0.75 in the paper.
            The loss needs at least one removed patch.
        norm_pix_loss: Whether targets are normalized patch by patch.
        **kwargs: Those of `keras.Model`.

    Call arguments:
        images: `(B, H, W, C)` float tensor, channels last, normalized as by
            `MAEImageProcessor`.
        noise: `(B, L)` tensor to sort instead of drawing one.
        mask: `(B, L)` tensor, 1 = removed, 0 = visible, instead of `mask_ratio`.
        seed: Int; the same seed gives the same mask at every call.
        interpolate: Whether to accept images of another size.
        output_hidden_states: Whether to return the encoder's `hidden_states`.
        output_attentions: Whether to return the encoder's `attentions`.
        loss_only: Whether the loss alone is wanted: only removed patches are predicted.
        factors: `(B, depth, 2)` tensor, those of the encoder's `StochasticDepth`; by
            default training draws them where it has a `drop_path_rate`.
        training: Whether dropout is active.

    Returns:
        A dict: `loss`, float32 scalar; `logits` `(B, L, P)`, the predicted patches;
        `mask` `(B, L)` float32; `ids_restore` `(B, L)` int32; `latent`
        `(B, 1 + K, hidden_dim)`; `hidden_states` and `attentions` on request.
        With `loss_only` the loss alone.

    Raises:
        ValueError: If the decoder does not fit the encoder, or for what the encoder
            rejects, or if no patch is removed.

    Example:

    ```python
    model = MAEPretrainer.from_preset("mae_tiny", norm_pix_loss=True)
    model.compile(optimizer=keras.optimizers.AdamW(1e-3))
    images = np.random.rand(8, 32, 32, 3).astype("float32")
    history = model.fit(images, batch_size=4, epochs=1, verbose=0)
    outputs = model(images, seed=0)
    assert outputs["logits"].shape == (8, 64, 48)
    ```
    """

    has_decoder = True

    def __init__(
        self,
        encoder: MAEEncoder,
        decoder: MAEDecoder,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = False,
        **kwargs: Any,
    ) -> None:
        # no autocast: the encoder takes images as they are, targets stay float32
        super().__init__(autocast=False, **kwargs)
        wanted = (encoder.grid, encoder.patch_dim, encoder.hidden_dim)
        received = (decoder.grid, decoder.patch_dim, decoder.latent_dim)
        if wanted != received:
            raise ValueError(
                "decoder must have the encoder's (grid, patch_dim, latent_dim) = "
                f"{wanted}. Received: {received}"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.mask_ratio = check_mask_ratio(mask_ratio)
        self.norm_pix_loss = norm_pix_loss
        self.loss_tracker = keras.metrics.Mean(name="loss")
        self.built = True

    def compile(  # type: ignore[override]
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        **options: Any,
    ) -> None:
        """Configures training, as `TrainStep.compile` does.

        Args:
            optimizer: Name or `keras.optimizers.Optimizer`.
            loss: No effect: the model brings its own.
            loss_weights: No effect.
            metrics: No effect.
            weighted_metrics: No effect.
            **options: The other arguments of `TrainStep.compile`.
        """
        super().compile(optimizer, **options)

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: encoder and decoder are born with their weights."""

    @property
    def metrics(self) -> list[keras.Metric]:
        """Only the loss: Keras's own tracker would report it a second time."""
        return [self.loss_tracker]

    def call(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int | None = None,
        interpolate: bool = False,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        loss_only: bool = False,
        factors: Tensor | None = None,
        training: bool | None = None,
    ) -> dict[str, Any]:
        outputs = self._forward(
            images,
            noise=noise,
            mask=mask,
            seed=seed,
            interpolate=interpolate,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            loss_only=loss_only,
            factors=factors,
            training=training,
        )
        per_image = outputs.pop("loss")
        # an empty share of a batch has no loss, rather than NaN
        count = ops.maximum(ops.shape(per_image)[0], 1)
        return {"loss": ops.sum(per_image) / ops.cast(count, "float32"), **outputs}

    def _forward(
        self,
        images,
        mask=None,
        interpolate=False,
        loss_only=False,
        training=None,
        **options,
    ):
        """Computes what a call returns, but with one `loss` an image, `(B,)`."""
        images = ops.cast(images, "float32")
        outputs = self.encoder(
            images,
            mask_ratio=self.mask_ratio if mask is None else None,
            mask=mask,
            interpolate=interpolate,
            training=training,
            **options,
        )
        if outputs["latent"].shape[1] == outputs["mask"].shape[1] + 1:
            raise ValueError(
                "The loss is over removed patches: at least one must be removed. "
                f"Received: mask_ratio={self.mask_ratio}, mask={mask}"
            )
        grid = grid_shape(images.shape[1:3], self.encoder.patch_size)
        ids_shuffle, latent = outputs.pop("ids_shuffle"), outputs["latent"]
        if loss_only:
            predicted = self.decoder(
                latent, ids_shuffle=ids_shuffle, grid=grid, training=training
            )
            removed = ids_shuffle[:, ops.shape(latent)[1] - 1 :]  # (B, L - K)
            return {"loss": self.loss_of_removed(images, predicted, removed)}
        logits = self.decoder(
            latent, outputs["ids_restore"], grid=grid, training=training
        )
        loss = self.loss_per_image(images, logits, outputs["mask"])
        return {"loss": loss, "logits": logits, **outputs}

    def loss_of_removed(
        self, images: Tensor, predicted: Tensor, ids_removed: Tensor
    ) -> Tensor:
        """Scores predictions of removed patches alone, image by image.

        Args:
            images: `(B, H, W, C)` tensor, the originals.
            predicted: `(B, R, P)` tensor, the predicted patches.
            ids_removed: `(B, R)` int tensor, which patches these are.

        Returns:
            `(B,)` float32 tensor, that of `loss_per_image`.

        Example:

        ```python
        model = MAEPretrainer.from_preset("mae_tiny")
        images = np.zeros((1, 32, 32, 3), "float32")
        loss = model.loss_of_removed(images, np.ones((1, 2, 48)), np.array([[0, 5]]))
        assert float(loss[0]) == 1.0
        ```
        """
        targets = patchify(ops.cast(images, "float32"), self.encoder.patch_size)
        targets = gather_tokens(targets, ids_removed)  # (B, R, P)
        if self.norm_pix_loss:
            targets = normalize_patches(targets)
        errors = ops.square(ops.cast(predicted, "float32") - targets)
        return ops.mean(errors, axis=(1, 2))

    def loss_per_image(self, images: Tensor, logits: Tensor, mask: Tensor) -> Tensor:
        """Scores a reconstruction on removed patches, image by image.

        Every row of a mask removes equally many patches, so the mean over images is
        the paper's loss.

        Args:
            images: `(B, H, W, C)` tensor, the originals.
            logits: `(B, L, P)` tensor, the predicted patches.
            mask: `(B, L)` tensor, 1 = removed, 0 = visible.

        Returns:
            `(B,)` float32 tensor.

        Example:

        ```python
        model = MAEPretrainer.from_preset("mae_tiny")
        images = np.zeros((1, 32, 32, 3), "float32")
        loss = model.loss_per_image(images, np.ones((1, 64, 48)), np.ones((1, 64)))
        assert float(loss[0]) == 1.0
        ```
        """
        targets = patchify(ops.cast(images, "float32"), self.encoder.patch_size)
        if self.norm_pix_loss:
            targets = normalize_patches(targets)  # (B, L, P)
        mask = ops.cast(mask, "float32")
        errors = ops.square(ops.cast(logits, "float32") - targets)
        errors = ops.mean(errors, axis=-1) * mask  # (B, L)
        return ops.sum(errors, axis=-1) / ops.sum(mask, axis=-1)

    def reconstruct(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int | None = None,
        interpolate: bool = False,
    ) -> dict[str, Tensor]:
        """Removes patches and paints them back.

        With `norm_pix_loss` the predicted patches are scaled by the mean and
        deviation of the *original* patches, which the model never saw: such a picture
        is partly given away, and should say so.

        Args:
            images: `(B, H, W, C)` float tensor, as for a call.
            noise: `(B, L)` tensor to sort instead of drawing one.
            mask: `(B, L)` tensor, 1 = removed, 0 = visible.
            seed: Int; the same seed gives the same mask at every call.
            interpolate: Whether to accept images of another size.

        Returns:
            A dict of float32 tensors in the scale of `images`: `masked` (removed
            patches are 0), `reconstruction` and `pasted` (the visible patches over
            the reconstruction), each `(B, H, W, C)`; `mask` `(B, L)`; `loss` `(B,)`.

        Raises:
            ValueError: As for a call.

        Example:

        ```python
        model = MAEPretrainer.from_preset("mae_tiny")
        images = np.random.rand(2, 32, 32, 3).astype("float32")
        assert model.reconstruct(images, seed=0)["pasted"].shape == (2, 32, 32, 3)
        ```
        """
        images = ops.cast(images, "float32")
        outputs = self._forward(
            images, noise=noise, mask=mask, seed=seed, interpolate=interpolate
        )
        patches = patchify(images, self.encoder.patch_size)  # (B, L, P)
        predicted = ops.cast(outputs["logits"], "float32")
        if self.norm_pix_loss:
            mean, deviation = patch_statistics(patches)
            predicted = predicted * deviation + mean
        removed = outputs["mask"][..., None]  # (B, L, 1)
        pictures = {
            "masked": patches * (1 - removed),
            "reconstruction": predicted,
            "pasted": patches * (1 - removed) + predicted * removed,
        }
        pictures = {
            name: unpatchify(value, self.encoder.patch_size, images.shape[1:3])
            for name, value in pictures.items()
        }  # (B, H, W, C) each
        return {**pictures, "mask": outputs["mask"], "loss": outputs["loss"]}

    def training_inputs(self, data: Any) -> dict[str, Tensor]:
        images = _images(data)
        inputs = {"images": images, "noise": self._draw_noise(images)}
        return {**inputs, **self.encoder.draw_factors(images, self.first_row)}

    def training_loss(self, images, noise, factors=None):
        outputs = self(
            images, noise=noise, factors=factors, loss_only=True, training=True
        )
        return outputs["loss"], None

    def track(self, loss: Tensor, outputs: None, data: Any) -> dict[str, Tensor]:
        self.loss_tracker.update_state(loss, sample_weight=ops.shape(_images(data))[0])
        return self.get_metrics_result()

    def evaluation(self, data):
        images = _images(data)
        noise = self._draw_noise(images, seed=EVALUATION_SEED)
        loss = self(images, noise=noise, loss_only=True, training=False)["loss"]
        return self.track(loss, None, data)

    def prediction(self, data):
        images = _images(data)
        noise = self._draw_noise(images, seed=EVALUATION_SEED)
        # one loss an image: a scalar can't be concatenated over batches
        return self._forward(images, noise=noise, training=False)

    def _draw_noise(self, images, seed=None):
        """Draws `(B, L)` noise: this replica's rows of the whole batch's."""
        batch = ops.shape(images)[0]
        return self.encoder.masking.draw_noise(
            batch, self.encoder.num_patches, seed, first_row=self.first_row(batch)
        )

    @classmethod
    def from_sizes(cls, sizes: Mapping[str, Any], overrides: Mapping[str, Any]) -> Self:
        encoder, decoder, pretrainer = pretrainer_config(sizes, overrides)
        encoder = MAEEncoder(**encoder)
        decoder = MAEDecoder(
            encoder.grid, encoder.patch_dim, encoder.hidden_dim, **decoder
        )
        return cls(encoder, decoder, dtype=encoder.dtype_policy, **pretrainer)

    def get_config(self) -> dict[str, Any]:
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "encoder": serialize(self.encoder),
            "decoder": serialize(self.decoder),
            "mask_ratio": self.mask_ratio,
            "norm_pix_loss": self.norm_pix_loss,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        deserialize = keras.saving.deserialize_keras_object
        parts = {name: deserialize(config[name]) for name in ("encoder", "decoder")}
        return cls(**{**config, **parts})
