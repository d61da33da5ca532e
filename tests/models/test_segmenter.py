"""The segmenter: a class for each pixel, gradients, and its life in Keras."""

import keras
import numpy as np
import pytest

from keras_mae.models import MAESegmenter

pytestmark = pytest.mark.backends

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.fixture(params=[(0, 1), (0,)], ids=["both", "first"])
def segmenter(request, make_model):
    encoder = make_model(patch_size=16).encoder
    return MAESegmenter(encoder, num_classes=3, layers=request.param, hidden_dim=8)


def halves(images):
    """What can be learned: the sign of the first channel."""
    return (images[..., 0] > 0).astype("int32")


def test_pixels_lie_where_their_patch_does(make_model):
    encoder = make_model(depth=1, image_size=(16, 40)).encoder
    kernel = encoder.blocks[0].attention.proj.kernel
    kernel.assign(kernel * 0)  # no patch sees another
    segmenter = MAESegmenter(encoder, num_classes=2)
    images = np.random.default_rng(0).random((2, 16, 40, 3)).astype("float32")
    changed = images.copy()
    changed[:, 8:16, 24:32] *= -1
    difference = np.abs(np.asarray(segmenter(changed) - segmenter(images)))
    difference = difference.max(axis=(0, 3)) > 0
    assert difference.shape == (16, 40)
    rows, columns = np.nonzero(difference)
    assert difference.sum() == 64 and rows.min() == 8 and columns.min() == 24
    # the pixel (1, 2) of a patch is the head's output 1 * 8 + 2
    segmenter.head.bias.assign(np.arange(8 * 8 * 2))
    segmenter.head.kernel.assign(segmenter.head.kernel * 0)
    logits = np.asarray(segmenter(images))
    np.testing.assert_array_equal(logits[:, 9, 26], [[20, 21]] * 2)


def test_other_sizes_by_interpolation(segmenter):
    images = np.zeros((2, 48, 16, 3), "float32")
    with pytest.raises(ValueError, match="interpolate=True accepts another size"):
        segmenter(images)
    assert segmenter(images, interpolate=True).shape == (2, 48, 16, 3)


def test_the_encoder_is_shared_and_can_be_frozen(make_model):
    encoder = make_model().encoder
    segmenter = MAESegmenter(encoder, num_classes=3, layers=(0, 1))
    assert segmenter.encoder is encoder
    count = len(segmenter.trainable_weights)
    encoder.trainable = False
    assert count > len(segmenter.trainable_weights) == 2 * 2 + 4


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize(
    "dtype", [pytest.param("float32", marks=pytest.mark.nightly), "mixed_bfloat16"]
)
def test_it_trains_under_xla_in_any_precision(make_model, images, dtype):
    encoder = make_model(dtype=dtype, depth=1, patch_size=16).encoder
    segmenter = MAESegmenter(encoder, 2, dtype=dtype)
    optimizer = keras.optimizers.Adam(1e-2)
    segmenter.compile(optimizer=optimizer, loss=LOSS, jit_compile=True)
    losses = segmenter.fit(images, halves(images), epochs=6, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert segmenter(images).dtype == segmenter.compute_dtype
    assert segmenter.head.kernel.dtype == "float32"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 0}, "num_classes must be a positive int. Received: 0"),
        ({"hidden_dim": 1.5}, "hidden_dim must be a positive int. Received: 1.5"),
        ({"layers": (4,)}, r"block numbers in \[-2, 1\]. Received: \(4,\)"),
    ],
)
def test_wrong_arguments_are_refused(make_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        MAESegmenter(make_model().encoder, **{"num_classes": 2, **arguments})
