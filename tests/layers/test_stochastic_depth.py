"""Stochastic depth: drop rates, rows, rematerialization."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_mae import MAEEncoder
from keras_mae.layers import StochasticDepth
from tests.autodiff import gradients

pytestmark = pytest.mark.backends


def test_rates_rise_linearly_and_factors_keep_the_mean():
    layer = StochasticDepth(0.3, depth=4, seed=0)
    factors = np.asarray(layer(np.zeros((20_000, 1))))
    for block, rate in enumerate((0.0, 0.1, 0.2, 0.3)):
        np.testing.assert_allclose((factors[:, block] == 0).mean(), rate, atol=0.01)
        kept = factors[:, block][factors[:, block] > 0]
        np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-6)
    np.testing.assert_allclose(factors.mean(axis=0), 1, atol=0.02)
    # attention and MLP are left out independently
    both = (factors[:, 3] == 0).all(axis=1).mean()
    np.testing.assert_allclose(both, 0.09, atol=0.01)


def test_rows_do_not_depend_on_how_a_batch_is_divided():
    whole = StochasticDepth(0.5, depth=3, seed=7)(np.zeros((8, 1)))
    halves = [
        StochasticDepth(0.5, depth=3, seed=7)(np.zeros((4, 1)), first_row=first)
        for first in (0, 4)
    ]
    np.testing.assert_array_equal(np.concatenate(halves), whole)


def test_each_call_draws_anew():
    layer = StochasticDepth(0.5, depth=3, seed=7)
    assert not np.array_equal(layer(np.zeros((8, 1))), layer(np.zeros((8, 1))))


@pytest.fixture
def encoder():
    return MAEEncoder.from_preset("mae_tiny", drop_path_rate=0.9, seed=0)


def test_inference_drops_no_branch(encoder, images):
    plain = MAEEncoder.from_config({**encoder.get_config(), "drop_path_rate": 0.0})
    plain.set_weights(encoder.get_weights()[: len(plain.get_weights())])
    np.testing.assert_array_equal(encoder(images), encoder(images))
    assert plain.stochastic_depth is None


def test_a_dropped_branch_changes_no_other_image(encoder, images):
    factors = np.ones((4, 4, 2), "float32")
    whole = np.asarray(encoder(images, factors=factors))
    np.testing.assert_allclose(whole, encoder(images), atol=1e-6)
    factors[1, 2, 0] = 0
    without = np.asarray(encoder(images, factors=factors))
    changed = np.abs(without - whole).max(axis=(1, 2)) > 1e-6
    assert changed.tolist() == [False, True, False, False]


def test_rematerialized_blocks_see_the_same_factors(encoder, images):
    again = MAEEncoder.from_config({**encoder.get_config(), "rematerialize": True})
    for mine, theirs in zip(again.weights, encoder.weights, strict=True):
        mine.assign(theirs)
    found = []
    for model in (encoder, again):
        model.stochastic_depth.seed_generator.state.assign([3, 0])
        _, values = gradients(
            lambda m=model: ops.mean(ops.square(m(images, training=True))),
            model.blocks[-1].trainable_variables,
        )
        found.append(values)
    for mine, theirs in zip(*found, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_float32_factors_leave_tokens_in_bfloat16(images):
    encoder = MAEEncoder.from_preset(
        "mae_tiny", drop_path_rate=0.25, dtype="mixed_bfloat16"
    )
    tokens = encoder(images, training=True)
    assert keras.backend.standardize_dtype(tokens.dtype) == "bfloat16"


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_a_wrong_rate_is_refused(rate):
    with pytest.raises(ValueError, match=rf"\[0, 1\). Received: {rate}"):
        StochasticDepth(rate, depth=2)
