"""What the train step of every model here shares: its hooks, `compile`, clipping."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_mae.ops.fusion import fusing_pays, plain_cpu, xla_pays
from keras_mae.trainers import BackendStep
from keras_mae.trainers.saved_state import ResumableState
from keras_mae.utils.typing import Tensor


class TrainStep(ResumableState, BackendStep):
    """Mixin that trains a `keras.Model` alike on every backend and number of replicas.

    A model says what it trains on in `training_inputs`, what it minimizes in
    `training_loss`, what it reports in `track`, and how it is evaluated and used in
    `evaluation` and `prediction`.

    Attributes:
        fuses: Whether loss and gradients are computed under `fusing`; `compile`
            decides.
        is_cpu_graph: Whether a step is a `keras_mae.ops.tracing.cpu_graph`.
    """

    fuses = False
    is_cpu_graph = False

    def training_inputs(self, data: Any) -> dict[str, Tensor]:
        """Takes a replica's batch apart.

        Args:
            data: What `fit` was given, a batch of it.

        Returns:
            A dict of tensors whose first axis is the batch, `images` among them.
        """
        raise NotImplementedError

    def training_loss(self, **inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        """Computes what to minimize.

        Args:
            **inputs: What `training_inputs` returned, or equal parts of it.

        Returns:
            A tuple: the mean loss over these inputs, a float32 scalar, and the outputs
            that `track` wants, a float32 tensor whose first axis is the batch, or
            `None`.
        """
        raise NotImplementedError

    def track(
        self, loss: Tensor, outputs: Tensor | None, data: Any
    ) -> dict[str, Tensor]:
        """Updates the metrics.

        Args:
            loss: The mean loss of this replica's batch.
            outputs: Those of `training_loss`, of the whole batch.
            data: What `fit` was given, a batch of it.

        Returns:
            A dict of metric results.
        """
        raise NotImplementedError

    def evaluation(self, data: Any) -> dict[str, Tensor]:
        """Computes metrics of a batch of validation data.

        Args:
            data: What `evaluate` was given, a batch of it.

        Returns:
            A dict of metric results.
        """
        raise NotImplementedError

    def prediction(self, data: Any) -> Any:
        """Computes what `predict` returns for a batch.

        Args:
            data: What `predict` was given, a batch of it.

        Returns:
            Tensors whose first axis is the batch.
        """
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
        xla = xla_pays() if jit_compile == "auto" else jit_compile
        whole = xla and not self._is_distributed()
        compiled = xla or self._is_on_tpu()  # which may be another machine's
        self.fuses = fusing_pays(compiled, self.count_params())
        self.is_cpu_graph = plain_cpu(compiled)
        super().compile(*args, jit_compile=whole, **kwargs)
        self._prepare_step(xla)

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
        """Says by what the optimizer multiplies the loss, and with it the gradients.

        Returns:
            1, but for float16, whose small gradients would be 0, or a
            `loss_scale_factor`.
        """
        return self.optimizer.scale_loss(1.0)

    def clipped(self, gradients: Sequence[Tensor], norm: Tensor) -> Sequence[Tensor]:
        """Shortens gradients to `clip_norm`, where that is set.

        Args:
            gradients: List of tensors.
            norm: Scalar tensor, the norm of all of them together, without the
                optimizer's scale.

        Returns:
            List of tensors.
        """
        if self.clip_norm is None:
            return gradients
        scale = self.clip_norm / ops.maximum(norm, self.clip_norm)
        return [gradient * ops.cast(scale, gradient.dtype) for gradient in gradients]
