"""Train, test and predict steps for each Keras backend."""

import importlib

import keras

# JAX's steps take variables as arguments and return them; the others' don't
BackendStep = importlib.import_module(
    f"keras_mae.trainers.{keras.backend.backend()}_step"
).BackendStep

__all__ = ["BackendStep"]
