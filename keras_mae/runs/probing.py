"""Probing of frozen features: mean tokens, logistic regression, a feature cache."""

import os
import zipfile

import numpy as np

from keras_mae.utils.files import atomic_write


def mean_features(encoder, images, batch_size):
    """Returns the mean patch token of each image, `(N, D)`."""
    tokens = encoder.predict(images, batch_size=batch_size, verbose=0)
    return tokens[:, 1:].mean(axis=1)


def cached(path, key, compute):
    """Reads a dict of arrays from an `.npz` of the same key, or computes and saves."""
    if os.path.exists(path):
        try:
            with open(path, "rb") as opened, np.load(opened) as file:
                if str(file["key"]) == key:
                    return {name: file[name] for name in file.files if name != "key"}
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            pass  # truncated, or another file: computed again
    arrays = compute()
    with atomic_write(path) as part, open(part, "wb") as file:
        np.savez(file, key=key, **arrays)
    return arrays


def check_scikit_learn():
    """Raises where scikit-learn, which logistic regression needs, is missing."""
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "Logistic regression needs scikit-learn: pip install 'keras-mae[demo]'"
        ) from error


def fit_logistic_regression(features, labels, c=0.1):
    """Fits scikit-learn's logistic regression on standardized features."""
    check_scikit_learn()
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # `c`, the inverse of the L2 penalty, suits 128 features and few labels
    regression = LogisticRegression(C=c, max_iter=2000)
    return make_pipeline(StandardScaler(), regression).fit(features, labels)
