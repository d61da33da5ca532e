"""AdamW with layer-wise learning rate decay, for fine-tuning."""

import re
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_mae.optimizers.adamw import MatrixDecayAdamW
from keras_mae.optimizers.averaging import ema_options
from keras_mae.utils.typing import Tensor

# without weight decay in fine-tuning, though they are not vectors
_TOKENS = re.compile(r"/patch_embedding/(cls_token|positions/embeddings)$")


def lr_scale(path: str, layer_decay: float, depth: int) -> float:
    """Returns a variable's share of the learning rate, by its path (paper, table 9)."""
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


@keras.saving.register_keras_serializable(package="keras_mae")
class FineTuningAdamW(MatrixDecayAdamW):
    """AdamW with layer-wise learning rate decay (paper, table 9).

    The learning rate of a variable, and its weight decay with it, is multiplied by
    `layer_decay ** (depth + 1 - id)`: the patch embedding has the id 0, block `i` has
    `i + 1`, and what follows the blocks `depth + 1`. Besides vectors, the CLS token and
    the positions are not decayed, as in facebook's fine-tuning.

    Args:
        *args: Those of `keras.optimizers.AdamW`.
        layer_decay: Float in (0, 1]; 1 makes all layers equal.
        depth: Int, the encoder's blocks: `len(model.encoder.blocks)`.
        **kwargs: Those of `MatrixDecayAdamW`.

    Raises:
        ValueError: If `layer_decay` or `depth` is out of range; when built, if a
            variable is of a block beyond `depth`.

    Example:

    ```python
    optimizer = FineTuningAdamW(1e-3, layer_decay=0.75, depth=24, weight_decay=0.05)
    ```
    """

    # a bfloat16 second moment can't change by a thousandth, 1 - beta_2
    float32_slots = (*MatrixDecayAdamW.float32_slots, "_velocity")

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
            # a wrong depth raises here, not in the middle of the first update
            lr_scale(variable.path, self.layer_decay, self.depth)
        super().build(variables)

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        scale = lr_scale(self._path(variable), self.layer_decay, self.depth)
        rate = ops.cast(learning_rate, "float32") * scale
        super().update_step(gradient, variable, rate)

    def _use_weight_decay(self, variable):
        if _TOKENS.search(self._path(variable)):
            return False
        return super()._use_weight_decay(variable)

    def _path(self, variable):
        """Returns the path, which the `tf.Variable` passed by TensorFlow lacks."""
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
    ema: float | None = None,
) -> FineTuningAdamW:
    """Builds the published AdamW for fine-tuning (paper, table 9).

    Betas are (0.9, 0.999) and epsilon is 1e-8. The published layer decay is 0.65 for
    base, and 0.75 for large and huge.

    Args:
        learning_rate: Float or schedule.
        layer_decay: Float in (0, 1].
        depth: Int, the encoder's blocks.
        weight_decay: Float.
        ema: Float in [0, 1), as of `pretraining_optimizer`.

    Returns:
        A `FineTuningAdamW`.

    Raises:
        ValueError: If `layer_decay`, `depth` or `ema` is out of range.

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
        **ema_options(ema),
    )
