"""Equality with numbers that PyTorch computed once: needs no PyTorch."""

from pathlib import Path

import numpy as np
import pytest

from keras_mae.weights import load_weights
from tests.parity.small_model import (
    assert_close,
    assert_gradients_close,
    build_keras,
    gradients,
)

pytestmark = pytest.mark.backends

PATH = Path(__file__).with_name("golden.npz")


@pytest.mark.parametrize("target", ["pixels", "normalized"])
def test_golden_values(target):
    stored = np.load(PATH)

    def part(start):
        keys = [key for key in stored if key.startswith(start)]
        return {key.removeprefix(start): stored[key] for key in keys}

    model = build_keras(
        (8, 12),
        mask_ratio=0.5,
        norm_pix_loss=target == "normalized",
        layer_norm_epsilon=1e-12,
    )
    load_weights(model, part("weight/"))
    images, noise = stored["images"], stored["noise"]
    outputs = model(images, noise=noise)
    for name, wanted in part(f"{target}/output/").items():
        assert_close(outputs[name], wanted, name)
    got = gradients(model, images, noise)
    assert_gradients_close(got, part(f"{target}/gradient/"))
