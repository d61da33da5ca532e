"""The train step of all models: hooks, `compile`, gradient clipping."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_mae.ops.fusion import auto_jit_compile, runs_as_cpu_graph, should_fuse
from keras_mae.optimizers.averaging import release_own_weights
from keras_mae.trainers import BackendStep
from keras_mae.trainers.base_step import is_overwritten
from keras_mae.trainers.saved_state import ResumableState
from keras_mae.utils.typing import Tensor


def warn_of_integers(images: Tensor) -> None:
    """Warns once, while a step is traced, of images that nobody normalized."""
    if "int" in keras.backend.standardize_dtype(images.dtype):
        warnings.warn(
            "Images are integers, and models take normalized floats: "
            "MAEImageProcessor(image_size)(images), or keras.layers.Rescaling and "
            f"Normalization. Received: dtype {images.dtype}",
            stacklevel=2,
        )


class TrainStep(ResumableState, BackendStep):
    """Mixin that trains a `keras.Model` alike on every backend and number of replicas.

    Models implement `training_inputs`, `training_loss`, `track`, `evaluation` and, if
    need be, `prediction`.
    """

    fuses = False  # whether a step runs in an enabled `fusion_scope`; set by `compile`
    is_cpu_graph = False  # and whether in an enabled `cpu_graph_scope`

    def training_inputs(self, data: Any) -> dict[str, Tensor]:
        """Returns a batch of `fit` as a dict of tensors with `images` among them."""
        raise NotImplementedError

    # *args only lets type checkers accept a model's own names
    def training_loss(self, *args: Any, **inputs: Any) -> tuple[Tensor, Tensor | None]:
        """Returns the mean loss, and outputs for `track`, of a batch or a part of it.

        The loss is a float32 scalar; outputs are float32 with the batch first, or
        `None`.
        """
        raise NotImplementedError

    def track(
        self, loss: Tensor, outputs: Tensor | None, data: Any
    ) -> dict[str, Tensor]:
        """Updates the metrics with a whole batch of `fit`; returns their results."""
        raise NotImplementedError

    def evaluation(self, data: Any) -> dict[str, Tensor]:
        """Updates the metrics with a batch of `evaluate`; returns their results."""
        raise NotImplementedError

    def prediction(self, data: Any) -> Any:
        """Returns the outputs of `predict` for a batch."""
        images, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        return self(images, training=False)

    def compile(
        self,
        *args: Any,
        jit_compile: bool | str = "auto",
        accumulation_steps: int = 1,
        clip_norm: float | None = None,
        **kwargs: Any,
    ) -> None:
        """Configures training, as `keras.Model.compile` does.

        Args:
            *args: Those of `keras.Model.compile`.
            jit_compile: `True`, `False`, or `"auto"`: XLA on GPUs and with JAX, plain
                graphs on CPUs, eager with PyTorch. One replica's step is compiled
                whole; under several, loss and gradients are, and the optimizer runs
                outside. TPUs always compile.
            accumulation_steps: Int, the parts in which a replica works through its
                batch before one update: the same numbers, less memory.
            clip_norm: Float or `None`, the largest norm of the gradient of all
                variables over all replicas; the paper does not clip.
            **kwargs: Those of `keras.Model.compile`.

        Raises:
            ValueError: If `accumulation_steps` is less than 1 or `clip_norm` is not
                positive.

        Example:

        ```python
        model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
        model.compile(optimizer=keras.optimizers.AdamW(1e-3), jit_compile=True)
        ```
        """
        if accumulation_steps < 1:
            raise ValueError(
                f"accumulation_steps must be at least 1. Received: {accumulation_steps}"
            )
        if clip_norm is not None and clip_norm <= 0:
            raise ValueError(f"clip_norm must be positive. Received: {clip_norm}")
        self.accumulation_steps = accumulation_steps
        self.clip_norm = clip_norm
        self._jit_compile_asked = jit_compile
        xla = auto_jit_compile() if jit_compile == "auto" else jit_compile
        whole = xla and not self._is_distributed()
        compiled = xla or self._is_on_tpu()  # devices of another machine, maybe
        self.fuses = should_fuse(compiled, self.count_params())
        self.is_cpu_graph = runs_as_cpu_graph(compiled)
        super().compile(*args, jit_compile=whole, **kwargs)
        self._prepare_step(xla)
        self._xla = xla

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().fit(*args, **kwargs)
        finally:
            release_own_weights(self)  # callbacks aren't told of an exception

    def renew_functions(self) -> None:
        """Lets `fit`, `evaluate` and `predict` trace their steps anew, also within one.

        What a trace has read of the model's attributes stays as it was then.
        """
        if self.compiled:
            self._prepare_step(self._xla)
        for name in ("train", "test", "predict"):
            if getattr(self, f"{name}_function", None) is not None:
                getattr(self, f"make_{name}_function")(force=True)

    def _get_metrics_result_or_logs(self, logs):
        # Keras reads metrics of all replicas only where a step logs nothing beside them
        metrics = self.get_metrics_result()
        return {name: metrics.get(name, value) for name, value in logs.items()}

    def get_compile_config(self):
        config = super().get_compile_config()
        if config:
            config["accumulation_steps"] = self.accumulation_steps
            config["clip_norm"] = self.clip_norm
            # "auto" is decided anew on the machine that loads the model
            config["jit_compile"] = self._jit_compile_asked
        return config

    def compile_from_config(self, config):
        # Keras skips this for a model with its own compile()
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def loss_scale(self) -> Tensor:
        """Returns the optimizer's loss scale, 1 unless float16 or the user set one."""
        return self.optimizer.scale_loss(1.0)

    def clip_gradients(
        self, gradients: Sequence[Tensor], variables: Sequence[Any], norm: Tensor
    ) -> Sequence[Tensor]:
        """Scales gradients of this global norm down to `clip_norm`, if set."""
        if self.clip_norm is None:
            return gradients
        scale = self.clip_norm / ops.maximum(norm, self.clip_norm)
        return [
            one if is_overwritten(variable) else one * ops.cast(scale, one.dtype)
            for one, variable in zip(gradients, variables, strict=True)
        ]
