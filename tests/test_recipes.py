"""Recipes: the published numbers, and how flags win over them."""

import dataclasses

import pytest

from keras_mae.optimizers.schedules import warmup_cosine
from keras_mae.recipes import FINE_TUNING, LINEAR_PROBING, apply_recipe

# He et al. 2021, tables 9 and 10, with the released code's values for each size
SHARED = {
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
TABLE = {
    # epochs, blr, layer decay, drop path
    "base": (100, 5e-4, 0.65, 0.1),
    "large": (50, 1e-3, 0.75, 0.2),
    "huge": (50, 1e-3, 0.75, 0.3),
}


@pytest.mark.parametrize("name", TABLE)
def test_fine_tuning_has_the_published_numbers(name):
    epochs, blr, decay, drop = TABLE[name]
    assert FINE_TUNING[name] == {
        **SHARED,
        "epochs": epochs,
        "blr": blr,
        "layer_decay": decay,
        "drop_path_rate": drop,
    }


@pytest.mark.parametrize("name, epochs", [("base", 90), ("large", 50), ("huge", 50)])
def test_probing_has_the_published_numbers(name, epochs):
    assert LINEAR_PROBING[name] == {
        "pooling": "cls",
        "batch_size": 16384,
        "epochs": epochs,
        "warmup_epochs": 10,
        "blr": 0.1,
        "weight_decay": 0.0,
        "crop_scale": 0.08,
        "flip": True,
    }


def test_the_schedule_ends_at_the_published_rate():
    schedule = warmup_cosine(5e-4 * 1024 / 256, 100, 5, 1e-6)
    assert float(schedule(5)) == pytest.approx(2e-3)
    assert float(schedule(100)) == pytest.approx(1e-6)


@dataclasses.dataclass
class Config:
    recipe: str
    blr: float | None = None
    flip: bool | None = None
    mixup: float | None = None


def test_what_is_given_wins():
    filled = apply_recipe(Config("base", flip=False, mixup=0.0), FINE_TUNING)
    assert filled == Config("base", 5e-4, flip=False, mixup=0.0)


def test_an_unknown_recipe_is_refused():
    with pytest.raises(ValueError, match=r"one of base, large, huge, small. .*'giant'"):
        apply_recipe(Config("giant"), FINE_TUNING)
