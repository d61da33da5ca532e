"""Published hyperparameters of fine-tuning and linear probing, as plain data.

Tables 9 and 10 of the paper (appendix A.1), with the values of the released code.
`small` is ours, for a few thousand images at most.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

_Config = TypeVar("_Config", bound=Any)

# common to base, large and huge (paper, table 9)
_PUBLISHED = {
    "pooling": "mean",
    "batch_size": 1024,
    "warmup_epochs": 5,
    "min_learning_rate": 1e-6,
    "weight_decay": 0.05,
    "crop_scale": 0.08,
    "flip": True,
    "magnitude": 9.0,
    "erase": 0.25,
    "mixup": 0.8,
    "cutmix": 1.0,
    "smoothing": 0.1,
}

FINE_TUNING = {
    "base": {
        **_PUBLISHED,
        "epochs": 100,
        "blr": 5e-4,
        "layer_decay": 0.65,
        "drop_path_rate": 0.1,
    },
    "large": {
        **_PUBLISHED,
        "epochs": 50,
        "blr": 1e-3,
        "layer_decay": 0.75,
        "drop_path_rate": 0.2,
    },
    "huge": {
        **_PUBLISHED,
        "epochs": 50,
        "blr": 1e-3,
        "layer_decay": 0.75,
        "drop_path_rate": 0.3,
    },
    # Small batches at a high rate for many epochs, as few images make few updates. No
    # crops, CutMix or erasing, which remove whole objects: on the digits, with five
    # labels per class, crops and CutMix cost 5 points. No flips: they change digits.
    "small": {
        "pooling": "mean",
        "batch_size": 64,
        "epochs": 60,
        "warmup_epochs": 5,
        "blr": 4e-3,
        "min_learning_rate": 1e-6,
        "weight_decay": 0.05,
        "crop_scale": 1.0,
        "flip": False,
        "magnitude": 0.0,
        "erase": 0.0,
        "mixup": 0.8,
        "cutmix": 0.0,
        "smoothing": 0.1,
        "layer_decay": 0.75,
        "drop_path_rate": 0.1,
    },
}

# paper, table 10: LARS, no augmentation but crops and flips
_PROBE = {
    "pooling": "cls",
    "batch_size": 16384,
    "warmup_epochs": 10,
    "blr": 0.1,
    "weight_decay": 0.0,
    "crop_scale": 0.08,
    "flip": True,
}
LINEAR_PROBING = {
    "base": {**_PROBE, "epochs": 90},
    "large": {**_PROBE, "epochs": 50},
    "huge": {**_PROBE, "epochs": 50},
    # whole images, whose features are computed once; batches for small data
    "small": {
        "pooling": "mean",
        "batch_size": 256,
        "epochs": 90,
        "warmup_epochs": 10,
        "blr": 10.0,
        "weight_decay": 0.0,
        "crop_scale": 1.0,
        "flip": False,
    },
}


def apply_recipe(config: _Config, recipes: Mapping[str, Mapping[str, Any]]) -> _Config:
    """Fills the flags that are `None` with the values of `config.recipe`."""
    if config.recipe not in recipes:
        raise ValueError(
            f"recipe must be one of {', '.join(recipes)}. Received: {config.recipe!r}"
        )
    missing = {
        name: value
        for name, value in recipes[config.recipe].items()
        if getattr(config, name, value) is None
    }
    return dataclasses.replace(config, **missing)
