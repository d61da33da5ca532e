"""MAEPretrainer with block-wise and grid-wise masks."""

import keras
import numpy as np
import pytest

import keras_mae
from keras_mae.layers import RandomMasking

pytestmark = pytest.mark.backends


def mask_of(outputs):
    return keras.ops.convert_to_numpy(outputs["mask"])


@pytest.mark.parametrize("mask_sampling, ratio", [("block", 0.5), ("grid", 0.75)])
def test_a_call_reconstruction_and_encoder_sample_alike(
    make_model, images, mask_sampling, ratio
):
    model = make_model(mask_sampling=mask_sampling, mask_ratio=ratio, depth=1)
    options = {"mask_ratio": ratio, "mask_sampling": mask_sampling, "seed": 5}
    wanted = RandomMasking()(np.zeros((4, 16, 1)), grid=(4, 4), **options)
    for outputs in (
        model(images, seed=5),
        model.reconstruct(images, seed=5),
        model.encoder(images, **options),
    ):
        np.testing.assert_array_equal(mask_of(outputs), mask_of(wanted))
    explicit = np.tile(np.arange(16) < 5, (4, 1))
    np.testing.assert_array_equal(mask_of(model(images, mask=explicit)), explicit)
    copy = keras_mae.MAEPretrainer.from_config(model.get_config())
    assert copy.mask_sampling == mask_sampling and copy.mask_ratio == ratio


def test_rectangular_and_other_sizes(make_model, images):
    model = make_model(mask_sampling="block", mask_ratio=0.5, image_size=(16, 32))
    assert mask_of(model(images[:, :16], seed=0)).sum(axis=1).tolist() == [4] * 4
    assert mask_of(model(images, seed=0, interpolate=True)).sum() == 4 * 8


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mask_sampling": "rows"}, "mask_sampling must be one of"),
        ({"mask_sampling": "grid", "mask_ratio": 0.6}, "mask_ratio must be 0.75"),
        ({"mask_sampling": "grid", "image_size": (8, 32)}, "even number of rows"),
    ],
)
def test_what_cannot_be_sampled_is_refused_at_once(make_model, options, message):
    with pytest.raises(ValueError, match=message):
        make_model(**options)


@pytest.mark.slow
@pytest.mark.parametrize("mask_sampling, ratio", [("block", 0.5), ("grid", 0.75)])
def test_training_evaluates_and_saves(
    make_model, images, tmp_path, mask_sampling, ratio
):
    model = make_model(mask_sampling=mask_sampling, mask_ratio=ratio, seed=0)
    model.compile(optimizer=keras.optimizers.AdamW(1e-2))
    before = model.evaluate(images, verbose=0)
    assert before == pytest.approx(float(model(images, seed=0)["loss"]), rel=1e-5)
    model.fit(images, epochs=20, verbose=0)
    after = model.evaluate(images, batch_size=2, verbose=0)
    assert after < 0.9 * before
    model.save(tmp_path / "mae.keras")
    loaded = keras.models.load_model(tmp_path / "mae.keras")
    assert loaded.mask_sampling == mask_sampling
    assert loaded.evaluate(images, verbose=0) == pytest.approx(after, rel=1e-5)
