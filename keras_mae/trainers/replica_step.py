"""What the steps of every backend share: one replica, parts of a batch, a norm."""

from collections.abc import Sequence

from keras import ops

from keras_mae.utils.typing import Tensor


def part_size(batch: int | None, steps: int) -> int:
    """Says how many rows a part of a batch has.

    Args:
        batch: Int or `None`, the rows of a replica's batch.
        steps: Int, the parts.

    Returns:
        Int.

    Raises:
        ValueError: If batches are of any size, or not divisible.

    Example:

    ```python
    assert part_size(32, steps=4) == 8
    ```
    """
    if batch is None or batch % steps:
        raise ValueError(
            "A replica's batch must be of one size, which accumulation_steps="
            f"{steps} divides: use batch(..., drop_remainder=True). Received: "
            f"{'batches of any size' if batch is None else batch}"
        )
    return batch // steps


def mean_gradients(
    sums: Sequence[Tensor], steps: int, variables: Sequence[Tensor]
) -> list[Tensor]:
    """Turns float32 sums over the parts of a batch into gradients of variables.

    Args:
        sums: List of tensors, a variable's each.
        steps: Int, the parts.
        variables: List of variables.

    Returns:
        List of tensors in the variables' dtypes.

    Example:

    ```python
    variable = keras.Variable([1.0, 2.0])
    (gradient,) = mean_gradients([keras.ops.array([4.0, 8.0])], 4, [variable])
    np.testing.assert_array_equal(gradient, [1.0, 2.0])
    ```
    """
    return [
        ops.cast(total / steps, variable.dtype)
        for total, variable in zip(sums, variables, strict=True)
    ]


def global_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Computes the Euclidean norm of all gradients together.

    Args:
        gradients: List of tensors.

    Returns:
        Float32 scalar tensor.

    Example:

    ```python
    assert float(global_norm([keras.ops.ones(9), keras.ops.ones((4, 4))])) == 5.0
    ```
    """
    squares = [ops.sum(ops.square(ops.cast(one, "float32"))) for one in gradients]
    return ops.sqrt(sum(squares))


class OneReplica:
    """What a model that is trained on one device says of its replicas.

    Example:

    ```python
    assert OneReplica().first_row(8) == 0
    ```
    """

    def first_row(self, batch: Tensor) -> Tensor:
        """Says where this replica's rows lie in the batch of all replicas.

        Args:
            batch: Int or scalar int tensor, rows of a replica.

        Returns:
            Int or scalar int tensor.
        """
        return 0

    def unscaled(self, loss: Tensor) -> Tensor:
        """Undoes what Keras does to a loss under several replicas.

        Args:
            loss: What `compute_loss` returned.

        Returns:
            The mean over this replica's batch.
        """
        return loss

    def local_values(self, value: Tensor) -> Sequence[Tensor]:
        """Lists what each replica of this process holds of a variable's value.

        Args:
            value: A variable's value.

        Returns:
            List of tensors.
        """
        return [value]

    def count_workers(self) -> int:
        """Counts the processes that train this model together.

        Returns:
            Int.
        """
        return 1

    def _prepare_step(self, xla):
        """Arranges, while the model is compiled, what a step does otherwise."""

    def _is_on_tpu(self):
        """Whether TensorFlow's strategy for TPUs trains this model."""
        return False

    def _is_distributed(self):
        """Whether several replicas, several workers or a TPU train this model."""
        return False
