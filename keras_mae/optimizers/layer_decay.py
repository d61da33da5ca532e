"""Fine-tuning's AdamW: the nearer a layer is to the image, the slower it learns."""

import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_mae.optimizers.adamw import MatrixDecayAdamW
from keras_mae.utils.typing import Tensor

# not decayed in fine-tuning, though they are no vectors
_TOKENS = re.compile(r"/patch_embedding/(cls_token|positions/embeddings)$")


def layer_scale(path: str, layer_decay: float, depth: int) -> float:
    """Tells which share of the learning rate a variable gets (paper, table 9).

    It is `layer_decay ** (depth + 1 - id)`: CLS, positions and the projection of
    patches have the id 0, block `i` has `i + 1`, and whatever follows the blocks has
    `depth + 1`, the full rate.

    Args:
        path: The variable's `path`.
        layer_decay: Float in (0, 1].
        depth: Int, the encoder's blocks.

    Returns:
        Float in (0, 1].

    Raises:
        ValueError: If the path is of a block that an encoder so deep lacks.

    Example:

    ```python
    assert layer_scale("mae_encoder/block_1/mlp/fc1/kernel", 0.5, depth=2) == 0.5
    assert layer_scale("mae_encoder/patch_embedding/cls_token", 0.5, depth=2) == 0.125
    assert layer_scale("mae_classifier/head/kernel", 0.5, depth=2) == 1.0
    ```
    """
    return layer_decay ** (depth + 1 - _layer_id(path, depth))


def _layer_id(path, depth):
    # the ends are the model's name and the variable's; the innermost layer counts
    for part in reversed(path.split("/")[1:-1]):
        if part == "patch_embedding":
            return 0
        if found := re.fullmatch(r"block_(\d+)", part):
            if (index := int(found[1])) >= depth:
                raise ValueError(
                    f"With depth={depth} there are block_0 to block_{depth - 1}. "
                    f"Received: the variable {path}"
                )
            return index + 1
    return depth + 1


def layer_scales(model: keras.Model, layer_decay: float) -> dict[str, float]:
    """Lists which share of the learning rate each trainable variable gets.

    Args:
        model: A `MAEClassifier`.
        layer_decay: Float in (0, 1].

    Returns:
        A dict from the variable's path to a float; see `layer_scale`.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
    model = keras_mae.MAEClassifier(encoder, num_classes=10)
    assert layer_scales(model, 0.75)[model.head.kernel.path] == 1.0
    ```
    """
    depth = len(model.encoder.blocks)
    return {
        variable.path: layer_scale(variable.path, layer_decay, depth)
        for variable in model.trainable_variables
    }


@keras.saving.register_keras_serializable(package="keras_mae")
class FineTuningAdamW(MatrixDecayAdamW):
    """AdamW whose learning rate shrinks from layer to layer, the head's downwards.

    A variable learns at its `layer_scale` times the learning rate, by which its weight
    decay shrinks as well. Besides vectors, the CLS token and the positions are not
    decayed, as in facebook's fine-tuning.

    Args:
        *args: Those of `keras.optimizers.AdamW`.
        layer_decay: Float in (0, 1]; 1 makes all layers equal.
        depth: Int, the encoder's blocks: `len(model.encoder.blocks)`.
        **kwargs: Those of `keras.optimizers.AdamW`, without `amsgrad`.

    Raises:
        ValueError: If `layer_decay` or `depth` is out of range; when built, if a
            variable is of a block beyond `depth`.

    Example:

    ```python
    optimizer = FineTuningAdamW(1e-3, layer_decay=0.75, depth=24, weight_decay=0.05)
    ```
    """

    def __init__(
        self, *args: Any, layer_decay: float, depth: int, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if not 0 < layer_decay <= 1:
            raise ValueError(f"layer_decay must be in (0, 1]. Received: {layer_decay}")
        if not isinstance(depth, int) or depth < 1:
            raise ValueError(f"depth must be a positive int. Received: {depth!r}")
        self.layer_decay = layer_decay
        self.depth = depth

    def build(self, variables: Sequence[keras.Variable]) -> None:
        for variable in variables:
            # a wrong depth is told here, not in the middle of the first update
            layer_scale(variable.path, self.layer_decay, self.depth)
        super().build(variables)

    def add_variable(
        self,
        shape: Sequence[int],
        initializer: str = "zeros",
        dtype: str | None = None,
        **kwargs: Any,
    ) -> keras.Variable:
        # a bfloat16 second moment can't move by a thousandth of itself, 1 - beta_2
        if (kwargs.get("name") or "").endswith("_velocity"):
            dtype = "float32"
        return super().add_variable(shape, initializer, dtype, **kwargs)

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        scale = layer_scale(self._path(variable), self.layer_decay, self.depth)
        rate = ops.cast(learning_rate, "float32") * scale
        super().update_step(gradient, variable, rate)

    def _use_weight_decay(self, variable):
        if _TOKENS.search(self._path(variable)):
            return False
        return super()._use_weight_decay(variable)

    def _path(self, variable):
        """Finds the path, which the variables that TensorFlow hands over lack."""
        return self._trainable_variables[self._get_variable_index(variable)].path

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "layer_decay": self.layer_decay,
            "depth": self.depth,
        }


def finetuning_optimizer(
    learning_rate: float | keras.optimizers.schedules.LearningRateSchedule,
    layer_decay: float,
    depth: int,
    weight_decay: float = 0.05,
) -> FineTuningAdamW:
    """Builds the published AdamW for fine-tuning (paper, table 9).

    Betas are (0.9, 0.999) and epsilon is 1e-8. The published layer decay is 0.65 for
    base, and 0.75 for large and huge.

    Args:
        learning_rate: Float or schedule.
        layer_decay: Float in (0, 1].
        depth: Int, the encoder's blocks.
        weight_decay: Float.

    Returns:
        A `FineTuningAdamW`.

    Raises:
        ValueError: If `layer_decay` or `depth` is out of range.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
    model = keras_mae.MAEClassifier(encoder, num_classes=10)
    optimizer = finetuning_optimizer(1e-3, 0.65, depth=len(encoder.blocks))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss)
    ```
    """
    return FineTuningAdamW(
        learning_rate,
        layer_decay=layer_decay,
        depth=depth,
        weight_decay=weight_decay,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-8,
    )
