"""Exponential moving average of a model's weights, kept by its optimizer."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
from keras import ops

from keras_mae.utils.typing import Tensor

# of the share of the newest weights, at the beginning: timm's ModelEmaV3
_WARMUP_POWER = 2 / 3


class AveragesWeights:
    """Mixin for a Keras optimizer: `use_ema` in float32, with a warm-up as timm's."""

    # endings of the names of variables that are float32 under every precision
    float32_slots: tuple[str, ...] = ("_average",)
    # those of the optimizer
    use_ema: bool
    ema_momentum: float
    ema_warmup: bool = False
    iterations: Any
    _trainable_variables: list[keras.Variable]
    _model_variables_moving_average: list[keras.Variable]

    def add_variable(
        self,
        shape: Sequence[int],
        initializer: str = "zeros",
        dtype: str | None = None,
        **kwargs: Any,
    ) -> keras.Variable:
        if (kwargs.get("name") or "").endswith(self.float32_slots):
            # a step of 1 - ema_momentum would not change bfloat16
            dtype = "float32"
        return super().add_variable(  # type: ignore[misc]
            shape, initializer, dtype, **kwargs
        )

    def newest_share(self) -> Tensor:
        """Returns the weight of the newest weights in the average, float32."""
        share = 1 - self.ema_momentum
        updates = ops.cast(self.iterations, "float32")
        if self.ema_warmup:
            # else the first weights would stay in the average for long
            return ops.maximum(share, (1 + updates) ** -_WARMUP_POWER)
        return ops.where(updates == 0, 1.0, share)

    def _update_model_variables_moving_average(self, trainable_variables):
        share = self.newest_share()
        for variable, average in _averaged(self):
            old = ops.convert_to_tensor(average)
            new = old + share * (ops.cast(variable, "float32") - old)
            average.assign(new)

    def _overwrite_model_variables_with_average_value(self, trainable_variables):
        for variable, average in _averaged(self):
            _assign_copy(variable, average)


def _assign_copy(variable, average):
    # JAX would give both the same array, which the next compiled step deletes
    variable.assign(ops.copy(ops.cast(average, variable.dtype)))


def _averaged(optimizer):
    """Lists pairs of a weight and its average."""
    averages = optimizer._model_variables_moving_average
    pairs = zip(optimizer._trainable_variables, averages, strict=True)
    # Keras keeps none of what a gradient overwrites, as scales of float8
    return [pair for pair in pairs if pair[1] is not None]


def ema_options(ema: float | None) -> dict[str, Any]:
    """Returns an optimizer's arguments for averages of decay `ema`; none for `None`."""
    if ema is None:
        return {}
    if not 0 <= ema < 1:
        raise ValueError(f"ema must be in [0, 1). Received: {ema}")
    return {"use_ema": True, "ema_momentum": ema, "ema_warmup": True}


def averaging_optimizer(model: keras.Model) -> Any:
    """Returns the model's optimizer if it averages weights, else `None`."""
    optimizer = getattr(model, "optimizer", None)
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    return optimizer if getattr(optimizer, "use_ema", False) else None


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """Puts the averages that the optimizer keeps into the model, within a `with`.

    Afterwards the model has its own weights again, to the bit, which
    `keras.callbacks.SwapEMAWeights` does not promise. What is saved within has the
    averages as its weights. Does nothing where the optimizer averages none, or before
    its first update.

    Args:
        model: A compiled `keras.Model`.

    Returns:
        A context manager.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    model.compile(optimizer=keras_mae.pretraining_optimizer(1e-3, ema=0.9999))
    images = np.random.rand(4, 32, 32, 3).astype("float32")
    with averaged_weights(model):
        loss = model.evaluate(images, verbose=0)
    ```
    """
    optimizer = averaging_optimizer(model)
    updates = 0 if optimizer is None else ops.convert_to_numpy(optimizer.iterations)
    pairs = _averaged(optimizer) if updates else []
    # in the host's memory: an accelerator's may be full
    own = [ops.convert_to_numpy(variable) for variable, _ in pairs]
    try:
        for variable, average in pairs:
            _assign_copy(variable, average)
        yield
    finally:
        for (variable, _), value in zip(pairs, own, strict=True):
            variable.assign(value)


def keep_own_weights(model: keras.Model) -> None:
    """Makes `fit` end with the weights as trained, not overwritten by averages."""
    optimizer = averaging_optimizer(model)
    if optimizer is not None:
        optimizer.finalize_variable_values = lambda variables: None


def release_own_weights(model: keras.Model) -> None:
    """Undoes `keep_own_weights`: the end of `fit` is Keras's again."""
    optimizer = averaging_optimizer(model)
    if optimizer is not None:
        vars(optimizer).pop("finalize_variable_values", None)
