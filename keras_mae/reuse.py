"""A pretrained encoder, and the head it was given, in another model."""

import keras
import numpy as np

from keras_mae.loading import is_run, load_keras, model_file
from keras_mae.models import MAEClassifier, MAEEncoder
from keras_mae.positions import resize_positions


def copy_encoder(encoder, **changes):
    """Builds an encoder with the weights of another and some other settings.

    Args:
        encoder: A `MAEEncoder`.
        **changes: Constructor arguments that differ. `image_size` resizes the
            positions in two dimensions; other sizes must stay.

    Returns:
        A `MAEEncoder`.

    Raises:
        ValueError: If a weight has another shape then.

    Example:

    ```python
    encoder = MAEEncoder.from_preset("mae_tiny")
    copy = copy_encoder(encoder, image_size=(32, 64), drop_path_rate=0.1)
    assert copy.num_patches == 128
    ```
    """
    copy = MAEEncoder.from_config(
        {**encoder.get_config(), **changes, "trainable": True, "trainable_blocks": None}
    )
    problems, values = [], []
    for new, old in zip(_parameters(copy), _parameters(encoder), strict=True):
        value = keras.ops.convert_to_numpy(old)
        if old.path.endswith("positions/embeddings") and copy.grid != encoder.grid:
            value = resize_positions(value[0], encoder.grid, copy.grid)[None]
        if tuple(value.shape) != tuple(new.shape):
            problems.append(f"{new.path}: {tuple(new.shape)}, not {value.shape}")
        values.append((new, value))
    if problems:
        raise ValueError(f"The encoder's weights don't fit: {'; '.join(problems)}")
    for new, value in values:
        new.assign(value)
    return copy


def load_classifier(source, num_classes, pooling="mean", head=None, **changes):
    """Puts a classifier around the encoder that a source holds.

    A head that the source has for as many classes is kept, with what normalizes its
    features: statistics of batches that the classifier has no place for go into the
    head's own weights. A head is new where the classifier has such a place and the
    source has not.

    Args:
        source: A run, a `.keras` file, a hub id, or a folder or file of PyTorch's.
        num_classes: Int.
        pooling: `"mean"` or `"cls"`.
        head: Dict of other constructor arguments of `MAEClassifier`, or `None`.
        **changes: Constructor arguments of the encoder that differ from the source's.

    Returns:
        A `MAEClassifier`.

    Raises:
        ValueError: If the source can't be read, or its encoder doesn't fit.

    Example:

    ```python
    keras_mae.MAEPretrainer.from_preset("mae_tiny").save("model.keras")
    classifier = load_classifier("model.keras", num_classes=10, drop_path_rate=0.1)
    ```
    """
    options = {"pooling": pooling, **(head or {})}
    if not is_run(source):
        return MAEClassifier.from_pretrained(
            source, num_classes=num_classes, **options, **changes
        )
    model = load_keras(model_file(source))
    encoder = copy_encoder(getattr(model, "encoder", model), **changes)
    classifier = MAEClassifier(
        encoder, num_classes, dtype=encoder.dtype_policy, **options
    )
    # a head is trained on one way of pooling
    if isinstance(model, MAEClassifier) and model.pooling == pooling:
        _keep_head(model, classifier)
    return classifier


def _keep_head(old, new):
    """Copies a head, and what its features go through, as far as it fits."""
    if new.head_norm is not None:
        new.head_norm.set_weights(old.head_norm.get_weights())
    if old.num_classes != new.num_classes:
        return
    if new.batch_norm is None:
        new.head.set_weights(_without_batch_norm(old))
    elif old.batch_norm is not None:
        new.batch_norm.set_weights(old.batch_norm.get_weights())
        new.head.set_weights(old.head.get_weights())


def _without_batch_norm(classifier):
    """Returns a head's kernel and bias, with the statistics before it inside them."""
    kernel, bias = classifier.head.get_weights()  # (D, K), (K,)
    norm = classifier.batch_norm
    if norm is None:
        return kernel, bias
    mean, variance = (np.float64(value) for value in norm.get_weights())
    kernel = kernel / np.sqrt(variance + norm.epsilon)[:, None]
    return kernel, bias - mean @ kernel


def _parameters(encoder):
    """Lists an encoder's weights, in an order that its settings don't change."""
    layers = [encoder.patch_embedding, *encoder.blocks, encoder.norm]
    return [
        weight
        for layer in layers
        for weight in sorted(layer.weights, key=lambda weight: weight.path)
        if not weight.path.endswith("seed_generator_state")
    ]
