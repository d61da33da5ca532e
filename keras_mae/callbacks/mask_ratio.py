"""Callback that changes the mask ratio while training."""

import math

import keras

from keras_mae.layers.masking import check_mask_ratio
from keras_mae.utils.typing import Logs

SHAPES = ("linear", "cosine")


class MaskRatioSchedule(keras.callbacks.Callback):
    """Changes a pretrainer's mask ratio from epoch to epoch, in a few steps.

    The ratio goes from `start` to `end` by `values` different ratios, each for an equal
    share of the epochs. It depends on the epoch's number alone, so that a resumed
    training goes on exactly; the logs have it as `mask_ratio`. Validation uses
    the epoch's ratio, as `evaluate` would then: its loss compares between epochs of the
    same ratio only.

    The ratio decides the shapes of a step. Each ratio therefore traces the steps of
    `fit` and of validation once more, and compiles them again with XLA: that is why the
    ratio doesn't change by update. Put the callback before others.

    Args:
        start: Float in [0, 1), the ratio of the first epochs.
        end: Float in [0, 1), the ratio of the last ones.
        epochs: Int, all epochs of the training.
        values: Int, how many different ratios there are, at least 2 and at most
            `epochs`.
        shape: `"linear"`, or `"cosine"`: small changes first and last.

    Raises:
        ValueError: If an argument is not as described.

    Example:

    ```python
    schedule = MaskRatioSchedule(0.5, 0.75, epochs=100, values=5)
    assert schedule.ratio(0) == 0.5 and schedule.ratio(99) == 0.75
    ```
    """

    def __init__(
        self,
        start: float,
        end: float,
        epochs: int,
        values: int = 5,
        shape: str = "linear",
    ) -> None:
        super().__init__()
        if shape not in SHAPES:
            raise ValueError(
                f"shape must be one of {', '.join(SHAPES)}. Received: {shape!r}"
            )
        if not 2 <= values <= epochs:
            raise ValueError(
                "values must be in [2, epochs]. Received: "
                f"values={values}, epochs={epochs}"
            )
        self.start = check_mask_ratio(start)
        self.end = check_mask_ratio(end)
        self.epochs = epochs
        self.values = values
        self.shape = shape

    def ratio(self, epoch: int) -> float:
        """Returns the mask ratio of an epoch, counted from 0.

        Args:
            epoch: Int; epochs beyond the last one have its ratio.

        Returns:
            Float.
        """
        index = min(epoch, self.epochs - 1) * self.values // self.epochs
        progress = index / (self.values - 1)
        if self.shape == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return (1 - progress) * self.start + progress * self.end

    def on_epoch_begin(self, epoch: int, logs: Logs = None) -> None:
        self.model.mask_ratio = self.ratio(epoch)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        if logs is not None:
            logs["mask_ratio"] = self.model.mask_ratio


def parse_schedule(text: str, epochs: int) -> MaskRatioSchedule:
    """Reads a flag such as `0.5:0.75`, `0.5:0.75:5` or `0.5:0.75:5:cosine`."""
    parts = text.split(":")
    try:
        if not 2 <= len(parts) <= 4:
            raise ValueError
        start, end = map(float, parts[:2])
        values = int(parts[2]) if parts[2:] else min(5, epochs)
    except ValueError as error:
        raise ValueError(
            "mask_ratio_schedule must be START:END[:VALUES[:SHAPE]], such as 0.5:0.75 "
            f"or 0.5:0.75:5:cosine. Received: {text}"
        ) from error
    return MaskRatioSchedule(start, end, epochs, values, *parts[3:])
