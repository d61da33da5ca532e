"""The Keras side of the parity tests: one small model, one random batch."""

import numpy as np

import keras_mae


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
    """Returns a dict from path to the loss's gradient, for every trainable variable."""
    import tensorflow as tf

    from keras_mae.weights import huggingface_rows
    from keras_mae.weights.port import find_variable

    rows = huggingface_rows(model)
    rows = [row for row in rows if find_variable(model, row.path).trainable]
    variables = [find_variable(model, row.path).value for row in rows]
    with tf.GradientTape() as tape:
        loss = model(images, noise=noise)["loss"]
    values = (value.numpy() for value in tape.gradient(loss, variables))
    return rows, dict(zip((row.path for row in rows), values, strict=True))


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
    for name, gradient in theirs.items():
        if name.endswith("k_proj.bias"):
            # softmax ignores a shift of all scores: only rounding is left of these
            assert np.abs(ours[name]).max() <= 1e-6 * largest
        else:
            assert_close(ours[name], gradient, name)
