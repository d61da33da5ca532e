"""How a step of training, evaluation and prediction runs on each Keras backend."""

import importlib

import keras

# JAX's steps take the variables in and give them back; those of the others don't
BackendStep = importlib.import_module(
    f"keras_mae.trainers.on_{keras.backend.backend()}"
).BackendStep

__all__ = ["BackendStep"]
