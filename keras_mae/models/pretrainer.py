"""MAEPretrainer: encoder, decoder, and training on the loss of removed patches."""

from collections.abc import Mapping
from typing import Any, Self

import keras
from keras import ops

from keras_mae.layers.freezing import KeepsFrozenParts
from keras_mae.layers.mask_sampling import check_mask_sampling
from keras_mae.layers.masking import PatchMaskMixin, check_mask_ratio
from keras_mae.models.decoder import MAEDecoder
from keras_mae.models.encoder import MAEEncoder
from keras_mae.models.mixins import Adaptable, FusedInference
from keras_mae.models.pretrained import Pretrained
from keras_mae.ops.losses import removed_patch_loss
from keras_mae.ops.patches import grid_shape, patch_statistics, patchify, unpatchify
from keras_mae.presets import pretrainer_config
from keras_mae.trainers.train_step import TrainStep, warn_of_integers
from keras_mae.utils.typing import Tensor

# evaluation always removes the same patches, so that epochs compare
EVALUATION_SEED = 0


def _images(data):
    """Returns the images of a batch; pretraining ignores labels and weights."""
    images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    if not hasattr(images, "shape"):
        keys = sorted(images) if isinstance(images, dict) else type(images).__name__
        raise ValueError(
            "A batch must be images or (images, labels); map a dataset of dicts, "
            f"as by lambda batch: batch['image']. Received: {keys}"
        )
    return images


@keras.saving.register_keras_serializable(package="keras_mae")
class MAEPretrainer(
    PatchMaskMixin,
    Adaptable,
    FusedInference,
    TrainStep,
    Pretrained,
    KeepsFrozenParts,
    keras.Model,
):
    """Masked autoencoder for pretraining with `fit` (He et al. 2021).

    Each step removes a random share of the patches, encodes the visible ones,
    reconstructs the pixels of all, and is scored on the removed ones (paper, section
    3): `sum(mean squared error of a patch * mask) / sum(mask)`. The model computes this
    loss itself: `compile` takes no `loss` or `metrics`, and `fit` ignores labels and
    sample weights.

    `evaluate`, and validation in `fit`, remove the same patches at each call, so that
    epochs compare. An image's place in the data set decides its mask: neither the batch
    size nor the number of replicas changes the result. `predict` removes the same
    patches at each call too, by an image's place in its batch.

    Args:
        encoder: A `MAEEncoder`.
        decoder: A `MAEDecoder` for the same patches.
        mask_ratio: Float in [0, 1), the share of patches to remove; 0.75 in the paper.
            The loss needs at least one removed patch.
        norm_pix_loss: Whether targets are normalized patch by patch.
        mask_sampling: `"random"`, `"block"` or `"grid"`, how patches are chosen (paper,
            figure 6 and table 1f); see `RandomMasking`. `"block"` removes large blocks,
            in the paper half of the patches or 0.75; `"grid"` keeps one of every
            four, and needs `mask_ratio=0.75` and even rows and columns of patches.
        **kwargs: Those of `keras.Model`.

    Call arguments:
        images: `(B, H, W, C)` float tensor, channels last, normalized as by
            `MAEImageProcessor`.
        noise: `(B, L)` tensor to sort instead of drawing one, whatever
            `mask_sampling`.
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
        mask_sampling: str = "random",
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
        self.mask_sampling = mask_sampling
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        # float32 whatever Keras's floatx is: `evaluation` counts rows by it
        self.loss_tracker = keras.metrics.Mean(name="loss", dtype="float32")
        self.built = True

    @property
    def mask_ratio(self) -> float:
        """Float, the share of patches to remove.

        It may be set at any time, within `fit` by callbacks such as
        `keras_mae.callbacks.MaskRatioSchedule`. As it decides the shapes, `fit`,
        `evaluate` and `predict` are traced and compiled anew then.
        """
        return self._mask_ratio

    @mask_ratio.setter
    def mask_ratio(self, mask_ratio: float) -> None:
        mask_ratio = check_mask_ratio(mask_ratio)
        check_mask_sampling(self.mask_sampling, mask_ratio, self.encoder.grid)
        changed = mask_ratio != getattr(self, "_mask_ratio", mask_ratio)
        self._mask_ratio = mask_ratio
        if changed:
            self.renew_functions()

    def compile(  # type: ignore[override]
        self,
        optimizer: Any = "rmsprop",
        loss: None = None,
        loss_weights: None = None,
        metrics: None = None,
        weighted_metrics: None = None,
        **options: Any,
    ) -> None:
        """Configures training, as `TrainStep.compile` does, without `loss` and metrics.

        Args:
            optimizer: Name or `keras.optimizers.Optimizer`.
            loss: Must be `None`: the model computes its own loss over removed patches.
            loss_weights: Must be `None`.
            metrics: Must be `None`: there are no labels to compare with.
            weighted_metrics: Must be `None`.
            **options: The other arguments of `TrainStep.compile`.

        Raises:
            ValueError: If a loss or metric is given.
        """
        given = {
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
        }
        given = {name: value for name, value in given.items() if value is not None}
        if given:
            raise ValueError(
                "MAEPretrainer computes its own loss over removed patches and has no "
                "labels: compile takes no loss and no metrics (for another loss, "
                f"override training_loss). Received: {given}"
            )
        super().compile(optimizer, **options)

    def build(self, input_shape: Any = None) -> None:
        """Does nothing: encoder and decoder build their weights in `__init__`."""

    @property
    def metrics(self) -> list[keras.Metric]:
        """The loss, and what a subclass adds; Keras's own tracker would repeat it."""
        return [one for one in super().metrics if one is not self._loss_tracker]

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
            mask_sampling=self.mask_sampling,
            **options,
        )
        if outputs["latent"].shape[1] == outputs["mask"].shape[1] + 1:
            raise ValueError(
                "The loss is over removed patches: at least one must be removed. "
                f"Received: mask_ratio={self.mask_ratio}, mask={mask}"
            )
        grid = grid_shape(images.shape[1:3], self.encoder.patch_size)
        ids_shuffle, latent = outputs.pop("ids_shuffle"), outputs["latent"]
        # an unknown number of removed patches can't be predicted alone
        if loss_only and latent.shape[1] is not None:
            predicted = self.decoder(
                latent, ids_shuffle=ids_shuffle, grid=grid, training=training
            )
            removed = ids_shuffle[:, ops.shape(latent)[1] - 1 :]  # (B, L - K)
            loss = self.loss_per_image(images, predicted, ids_removed=removed)
            return {"loss": loss}
        logits = self.decoder(
            latent, outputs["ids_restore"], grid=grid, training=training
        )
        loss = self.loss_per_image(images, logits, outputs["mask"])
        if loss_only:
            return {"loss": loss}
        return {"loss": loss, "logits": logits, **outputs}

    def loss_per_image(
        self,
        images: Tensor,
        logits: Tensor,
        mask: Tensor | None = None,
        ids_removed: Tensor | None = None,
    ) -> Tensor:
        """Computes the loss of each image, as `keras_mae.ops.removed_patch_loss` does.

        Args:
            images: `(B, H, W, C)` tensor, the originals.
            logits: `(B, L, P)` tensor, the predicted patches.
            mask: `(B, L)` tensor, 1 = removed, 0 = visible.
            ids_removed: `(B, R)` int tensor, the patches that `logits` holds, instead
                of `mask`.

        Returns:
            `(B,)` float32 tensor.
        """
        return removed_patch_loss(
            images,
            logits,
            self.encoder.patch_size,
            mask=mask,
            ids_removed=ids_removed,
            norm_pix_loss=self.norm_pix_loss,
        )

    def reconstruct(
        self,
        images: Tensor,
        noise: Tensor | None = None,
        mask: Tensor | None = None,
        seed: int | None = None,
        interpolate: bool = False,
    ) -> dict[str, Tensor]:
        """Removes patches and reconstructs them.

        With `norm_pix_loss` the predicted patches are scaled by the mean and
        deviation of the *original* patches, which the model never saw: a caption should
        say so.

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
        warn_of_integers(images)
        inputs = {"images": images, "noise": self._draw_noise(images)}
        return {**inputs, **self.encoder.draw_factors(images, self.first_row)}

    def training_loss(
        self, images: Tensor, noise: Tensor, factors: Tensor | None = None
    ) -> tuple[Tensor, None]:
        outputs = self(
            images, noise=noise, factors=factors, loss_only=True, training=True
        )
        return self._with_added_losses(outputs["loss"]), None

    def _with_added_losses(self, loss):
        """Adds what regularizers and `add_loss` ask for, as `compute_loss` does."""
        added = [self._aggregate_additional_loss(one) for one in self.losses]
        return sum(map(self.unscaled, added), loss)

    def track(self, loss: Tensor, outputs: None, data: Any) -> dict[str, Tensor]:
        self.loss_tracker.update_state(loss, sample_weight=ops.shape(_images(data))[0])
        return self.get_metrics_result()

    def evaluation(self, data: Any) -> dict[str, Tensor]:
        images = _images(data)
        # the rows of all replicas since `evaluate` has reset the metrics
        seen = self.sum_over_replicas(ops.convert_to_tensor(self.loss_tracker.count))
        noise = self._draw_noise(images, EVALUATION_SEED, ops.cast(seen, "int32"))
        loss = self(images, noise=noise, loss_only=True, training=False)["loss"]
        return self.track(self._with_added_losses(loss), None, data)

    def prediction(self, data: Any) -> dict[str, Tensor]:
        images = _images(data)
        noise = self._draw_noise(images, seed=EVALUATION_SEED)
        # one loss an image: a scalar can't be concatenated over batches
        return self._forward(images, noise=noise, training=False)

    def _draw_noise(self, images, seed=None, seen=0):
        """Draws this replica's noise `(B, L)`; `seen` counts rows of batches before."""
        batch = ops.shape(images)[0]
        noise = self.encoder.masking.draw_noise(
            batch,
            self.encoder.num_patches,
            seed,
            first_row=seen + self.first_row(batch),
            mask_sampling=self.mask_sampling,
            mask_ratio=self.mask_ratio,
            grid=self.encoder.grid,
        )
        return self.distribute_rows(noise)  # (B, L)

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
            "mask_sampling": self.mask_sampling,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        deserialize = keras.saving.deserialize_keras_object
        parts = {name: deserialize(config[name]) for name in ("encoder", "decoder")}
        return super().from_config({**config, **parts})
