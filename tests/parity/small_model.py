"""The Keras side of the parity tests: one small model, one random batch."""

import numpy as np

import keras_mae
from tests import autodiff


def build_keras(image_size, patch_size=4, num_channels=3, **overrides):
    """Builds the small model that the parity tests and the golden file speak of."""
    return keras_mae.MAEPretrainer.from_preset(
        "mae_tiny",
        image_size=image_size,
        patch_size=patch_size,
        num_channels=num_channels,
        hidden_dim=24,
        depth=3,
        num_heads=3,
        mlp_dim=40,
        decoder_hidden_dim=16,
        decoder_depth=2,
        decoder_num_heads=2,
        decoder_mlp_dim=36,
        **overrides,
    )


def random_batch(image_size, patch_size, num_channels, batch=3, seed=1):
    """Draws images `(B, H, W, C)` and noise `(B, L)`, float32."""
    rng = np.random.default_rng(seed)
    height, width = image_size
    length = (height // patch_size) * (width // patch_size)
    images = rng.standard_normal((batch, height, width, num_channels))
    return images.astype("float32"), rng.random((batch, length), dtype="float32")


def gradients(model, images, noise):
    """Returns the loss's gradients by the keys of a state dict of 5.x."""
    from keras_mae.weights import export_weights
    from keras_mae.weights.key_mapping import HUGGINGFACE_STATE, port_rows
    from keras_mae.weights.state_dict import contents_of, find_variable

    rows = port_rows(contents_of(model), HUGGINGFACE_STATE)
    variables = {row.path: find_variable(model, row.path) for row in rows}
    variables = {path: v for path, v in variables.items() if v.trainable}
    _, values = autodiff.gradients(
        lambda: model(images, noise=noise)["loss"], list(variables.values())
    )
    values = dict(zip(variables, values, strict=True))
    return export_weights(model, HUGGINGFACE_STATE, values)


def assert_close(ours, theirs, name):
    """Asserts a maximal difference of 1e-5, relative to the tensor's scale."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape, name
    scale = max(np.abs(theirs).max(), 1e-12)
    assert np.abs(ours - theirs).max() / scale <= 1e-5, name


def assert_gradients_close(ours, theirs):
    """Asserts two dicts of gradients equal, key by key."""
    assert set(ours) == set(theirs)
    largest = max(np.abs(gradient).max() for gradient in theirs.values())
    for name, wanted in theirs.items():
        got = ours[name]
        if name.endswith("qkv.bias"):
            (query, key, value), parts = np.split(got, 3), np.split(wanted, 3)
            got, wanted = np.append(query, value), np.append(parts[0], parts[2])
            assert np.abs(key).max() <= 1e-6 * largest
        if name.endswith("k_proj.bias"):
            # softmax ignores a shift of all scores: only rounding is left of these
            assert np.abs(got).max() <= 1e-6 * largest
        else:
            assert_close(got, wanted, name)
