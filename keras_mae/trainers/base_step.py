"""Parts of the training steps: gradient accumulation, the global norm, defaults."""

import warnings
from collections.abc import Sequence
from typing import Any

from keras import ops

from keras_mae.utils.typing import Tensor


def part_size(batch: int | None, steps: int) -> int:
    """Returns the rows of one of `steps` equal parts of a batch."""
    if batch is None or batch % steps:
        raise ValueError(
            "The batch size of a replica must be fixed and divisible by "
            f"accumulation_steps={steps}: use batch(..., drop_remainder=True). "
            f"Received: batch_size={batch}"
        )
    return batch // steps


def is_overwritten(variable: Any) -> bool:
    """Whether a "gradient" is the variable's new value, as of float8's scales."""
    return getattr(variable, "overwrite_with_gradient", False)


def add_part(total: Tensor, gradient: Tensor, variable: Any) -> Tensor:
    """Adds the gradient of a part of a batch; of what is overwritten, the maximum."""
    add = ops.maximum if is_overwritten(variable) else ops.add
    return add(total, ops.cast(gradient, "float32"))


def mean_gradients(
    sums: Sequence[Tensor | None], steps: int, variables: Sequence[Any]
) -> list[Tensor | None]:
    """Turns float32 sums over parts of a batch into gradients in variables' dtypes."""
    # of what is overwritten they are maxima, which stay
    means = [
        total if total is None or is_overwritten(variable) else total / steps
        for total, variable in zip(sums, variables, strict=True)
    ]
    return [
        None if mean is None else ops.cast(mean, variable.dtype)
        for mean, variable in zip(means, variables, strict=True)
    ]


def drop_unused(
    gradients: Sequence[Tensor | None], variables: Sequence[Any]
) -> tuple[list[Tensor], list[Any]]:
    """Leaves out variables without gradient, with the warning that Keras gives."""
    pairs = list(zip(gradients, variables, strict=True))
    used = [(gradient, one) for gradient, one in pairs if gradient is not None]
    unused = [one.path for gradient, one in pairs if gradient is None]
    if not used:
        raise ValueError("The loss must depend on at least one trainable weight")
    if unused:
        warnings.warn(
            "The loss does not depend on these trainable weights, which stay as they "
            f"are: {', '.join(unused)}",
            stacklevel=2,
        )
    return [gradient for gradient, _ in used], [one for _, one in used]


def global_norm(gradients: Sequence[Tensor], variables: Sequence[Any]) -> Tensor:
    """Computes the float32 Euclidean norm of all gradients together."""
    squares = [
        ops.sum(ops.square(ops.cast(one, "float32")))
        for one, variable in zip(gradients, variables, strict=True)
        if not is_overwritten(variable)
    ]
    return ops.sqrt(sum(squares))


class BaseStep:
    """Defaults for a model that is trained on one device."""

    def first_row(self, batch: Tensor) -> Tensor:
        """Returns where this replica's rows begin in the batch of all replicas."""
        return 0

    def distribute_rows(self, batch: Tensor) -> Tensor:
        """Gives each device of a `keras.distribution` its rows of a drawn batch."""
        return batch

    def sum_over_replicas(self, value: Tensor) -> Tensor:
        """Adds up a value of which each replica has its own."""
        return value

    def unscaled(self, loss: Tensor) -> Tensor:
        """Undoes Keras's scaling of a loss by the number of replicas."""
        return loss

    def local_values(self, value: Tensor) -> Sequence[Tensor]:
        """Returns the values of a variable on this process's replicas."""
        return [value]

    def count_workers(self) -> int:
        """Returns how many processes train this model together."""
        return 1

    def _prepare_step(self, xla):
        """Prepares the step, at the end of `compile`."""

    def _is_on_tpu(self):
        """Whether TensorFlow's strategy for TPUs trains this model."""
        return False

    def _is_distributed(self):
        """Whether several replicas, several workers or a TPU train this model."""
        return False
