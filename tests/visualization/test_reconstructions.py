"""Drawn reconstructions: layout, captions, errors."""

import numpy as np
import pytest

import keras_mae
from keras_mae.visualization import reconstructions

pytestmark = pytest.mark.backends


@pytest.mark.parametrize("channels", [1, 3])
def test_four_panels_a_row(make_model, channels):
    half = (0.5,) * channels
    processor = keras_mae.MAEImageProcessor(32, half, half)
    model = make_model(num_channels=channels)
    levels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, channels), "uint8")
    picture = keras_mae.draw_reconstructions(
        model, processor, processor.normalize(levels), seed=0, panel_size=32
    )
    assert picture.mode == "RGB"
    assert picture.width == 4 * 32 + 3 * 4
    panel = np.asarray(picture)[20:52, :32]
    np.testing.assert_array_equal(panel, np.broadcast_to(levels[0], (32, 32, 3)))


def test_masks_are_drawn_beside_the_original():
    half = (0.5,) * 3
    processor = keras_mae.MAEImageProcessor(32, half, half)
    levels = np.random.default_rng(0).integers(0, 200, (2, 32, 32, 3), "uint8")
    picture = reconstructions.draw_masks(
        processor,
        processor.normalize(levels),
        8,
        [("random", 0.75), ("block", 0.5), ("grid", 0.75)],
        panel_size=32,
    )
    assert picture.width == 4 * 32 + 3 * 4
    shares = []
    for left in range(0, 4 * 36, 36):
        panel = np.asarray(picture)[20:52, left : left + 32]
        differs = (panel != levels[0]).any(axis=-1).reshape(4, 8, 4, 8)
        shares.append(differs.all(axis=(1, 3)).mean())
    assert shares == pytest.approx([0, 0.75, 0.5, 0.75], abs=0.01)


def test_small_images_are_enlarged_by_whole_factors():
    batch = np.zeros((1, 20, 30, 3), "uint8")
    picture = reconstructions.draw_panels([batch], ["t"], "caption", panel_size=100)
    assert picture.width == 120


@pytest.mark.parametrize("norm_pix_loss", [False, True])
def test_the_caption_tells_of_normalized_patches(
    make_model, images, norm_pix_loss, monkeypatch
):
    captions = []
    monkeypatch.setattr(
        reconstructions, "draw_panels", lambda *arguments: captions.append(arguments[2])
    )
    model = make_model(norm_pix_loss=norm_pix_loss)
    processor = keras_mae.MAEImageProcessor(image_size=32)
    keras_mae.draw_reconstructions(model, processor, images, seed=0)
    assert "75% of the patches removed" in captions[0]
    assert ("mean and deviation of the original" in captions[0]) == norm_pix_loss


def test_undrawable_channels_are_refused():
    with pytest.raises(ValueError, match="one or three channels"):
        reconstructions.draw_panels([np.zeros((1, 8, 8, 2), "uint8")], ["t"], "c")
