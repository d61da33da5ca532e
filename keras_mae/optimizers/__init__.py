"""Optimizers and learning rate schedules of MAE: AdamW, layer decay, LARS, EMA."""

from keras_mae.optimizers.adamw import MatrixDecayAdamW, pretraining_optimizer
from keras_mae.optimizers.averaging import averaged_weights
from keras_mae.optimizers.lars import LARS
from keras_mae.optimizers.layer_decay import FineTuningAdamW, finetuning_optimizer
from keras_mae.optimizers.schedules import warmup_cosine

__all__ = [
    "LARS",
    "FineTuningAdamW",
    "MatrixDecayAdamW",
    "averaged_weights",
    "finetuning_optimizer",
    "pretraining_optimizer",
    "warmup_cosine",
]
