"""Frozen features of images: an encoder's pooled tokens, computed batch by batch."""

import itertools

import keras
import numpy as np
from keras import ops


def pooled_tokens(encoder, images, pooling, norm=None, **options):
    """Returns the feature `(B, D)` of each image: `norm` of the mean token, or CLS."""
    if pooling == "cls":
        return encoder(images, **options)[:, 0]  # (B, D)
    outputs = encoder(images, output_hidden_states=True, **options)
    return norm(ops.mean(outputs["hidden_states"][-1][:, 1:], axis=1))  # (B, D)


class PooledFeatures(keras.Model):
    """The features that a fresh `MAEClassifier` around an encoder would see."""

    def __init__(self, encoder, pooling="mean", norm=None):
        super().__init__(autocast=False, dtype=encoder.dtype_policy)
        self.encoder = encoder
        self.pooling = pooling
        if norm is None:
            # a norm with scale 1 and shift 0 is that of a fresh classifier
            norm = keras.layers.LayerNormalization(
                epsilon=encoder.get_config()["layer_norm_epsilon"],
                center=False,
                scale=False,
                dtype=encoder.dtype_policy,
            )
            norm.build((None, encoder.hidden_dim))
        self.head_norm = norm
        # XLA on TensorFlow would compile a model that runs once a batch, and rounds
        # otherwise
        self.compile(jit_compile=keras.backend.backend() == "jax")
        self.built = True

    def call(self, images):
        return pooled_tokens(
            self.encoder, images, self.pooling, self.head_norm, training=False
        )


def extract_features(function, batches, steps=None):
    """Computes features `(N, D)` and class ids `(N,)` of `steps` batches, or of all."""
    features, labels = [], []
    for images, targets, *weights in itertools.islice(iter(batches), steps):
        # JAX's steps don't take the tensors of tf.data
        value = ops.convert_to_numpy(function(np.asarray(images))).astype("float32")
        # images of weight 0 are padding
        real = np.asarray(weights[0]) > 0 if weights else slice(None)
        targets = np.asarray(targets)[real]
        one_hot = targets.ndim > 1 and targets.shape[-1] > 1
        features.append(value[real])
        labels.append(
            targets.argmax(axis=-1) if one_hot else _whole(targets.reshape(-1))
        )
    return np.concatenate(features), np.concatenate(labels)


def _whole(labels):
    """Returns class ids as integers: `label_mode="binary"` of Keras gives floats."""
    ids = labels.astype("int64")
    wrong = labels[(ids != labels) | (ids < 0)]
    if wrong.size:
        raise ValueError(f"labels must be class ids or one-hot. Received: {wrong[0]}")
    return ids
