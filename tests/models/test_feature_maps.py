"""Feature maps: the hidden states as images, in raster order, for any size."""

import keras
import numpy as np
import pytest
import tensorflow as tf

pytestmark = pytest.mark.backends


@pytest.mark.slow
def test_they_are_the_hidden_states_and_the_last_is_normed(make_model, images):
    encoder = make_model(depth=3).encoder
    encoder.norm.gamma.assign(encoder.norm.gamma * 7)
    outputs = encoder(images, output_hidden_states=True)
    states = [np.asarray(state)[:, 1:] for state in outputs["hidden_states"]]
    latent = np.asarray(outputs["latent"])[:, 1:]
    maps = encoder.feature_maps(images, layers=(2, 0, -2, -1))
    wanted = [latent, states[1], states[2], latent]
    for one, tokens in zip(maps, wanted, strict=True):
        assert one.shape == (4, 4, 4, 16)
        np.testing.assert_array_equal(np.reshape(one, (4, 16, 16)), tokens)
    (last,) = encoder.feature_maps(images)
    np.testing.assert_array_equal(last, maps[0])


def test_an_encoder_without_final_norm_gives_the_plain_last_block(make_model, images):
    encoder = make_model().encoder
    encoder = type(encoder)(**{**encoder.get_config(), "final_norm": False})
    states = encoder(images, output_hidden_states=True)["hidden_states"]
    (last,) = encoder.feature_maps(images)
    np.testing.assert_array_equal(np.reshape(last, (4, 16, 16)), states[-1][:, 1:])


@pytest.mark.parametrize("interpolate", [False, True])
def test_row_and_column_are_the_patch(make_model, interpolate):
    size = {} if interpolate else {"image_size": (16, 40)}
    encoder = make_model(num_channels=1, **size).encoder
    # a block that mixes no patches leaves each where it is
    for block in encoder.blocks:
        block.attention.proj.kernel.assign(block.attention.proj.kernel * 0)
    images = np.zeros((1, 16, 40, 1), "float32")
    changed = images.copy()
    changed[:, 8:16, 24:32] += np.random.default_rng(0).random((1, 8, 8, 1))
    maps = [
        np.asarray(encoder.feature_maps(x, (0, 1), interpolate=interpolate))
        for x in (images, changed)
    ]
    different = np.abs(maps[1] - maps[0]).max(axis=(1, 4)) > 0  # (2, h, w)
    assert different.shape == (2, 2, 5)
    assert np.argwhere(different).tolist() == [[0, 1, 3], [1, 1, 3]]


@pytest.mark.parametrize(
    "layers, received",
    [
        ((2,), r"\(2,\)"),
        ([0, -3], r"\[0, -3\]"),
        ((), r"\(\)"),
        (1, "1"),
        ((0.5,), r"\(0.5,\)"),
    ],
)
def test_wrong_layers_are_refused(make_model, images, layers, received):
    message = rf"one or more block numbers in \[-2, 1\]. Received: {received}"
    with pytest.raises(ValueError, match=message):
        make_model().encoder.feature_maps(images, layers)


def test_images_are_checked(make_model):
    with pytest.raises(ValueError, match="interpolate=True accepts another size"):
        make_model().encoder.feature_maps(np.zeros((1, 40, 40, 3), "float32"))


@pytest.mark.slow
@pytest.mark.tensorflow
@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16"])
def test_inside_a_graph_with_any_batch(make_model, images, dtype):
    encoder = make_model(dtype=dtype).encoder
    signature = [tf.TensorSpec((None, 32, 32, 3), "float32")]
    maps = tf.function(
        lambda x: encoder.feature_maps(x, (0, 1)), signature, jit_compile=True
    )
    for one, same in zip(
        maps(images), encoder.feature_maps(images, (0, 1)), strict=True
    ):
        assert one.dtype == same.dtype == encoder.compute_dtype
        tolerance = 1e-5 if dtype == "float32" else 0.1
        np.testing.assert_allclose(
            tf.cast(one, "float32"), tf.cast(same, "float32"), atol=tolerance
        )
    assert maps(images[:0])[0].shape == (0, 4, 4, 16)


@pytest.mark.nightly
def test_a_functional_model_trains_through_them(make_model, images):
    encoder = make_model(rematerialize=True).encoder
    inputs = keras.Input((32, 32, 3))
    maps = keras.layers.Concatenate()(encoder.feature_maps(inputs, (0, 1)))
    model = keras.Model(inputs, keras.layers.Dense(2)(maps))
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss="mse")
    before = encoder.patch_embedding.projection.kernel.numpy()
    targets = np.random.default_rng(0).random((4, 4, 4, 2))
    losses = model.fit(images, targets, epochs=4, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    assert not np.array_equal(encoder.patch_embedding.projection.kernel, before)
