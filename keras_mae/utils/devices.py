"""Keras's backend, and the devices that it sees."""

import keras


def has_accelerator() -> bool:
    """Whether the backend sees a GPU or a TPU."""
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_backend() != "cpu"
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.is_available() or torch.backends.mps.is_available()
    import tensorflow as tf

    return any(map(tf.config.list_physical_devices, ("GPU", "TPU")))


def check_tensorflow_backend(name):
    """Raises where `name` would need TensorFlow, and Keras runs on another backend."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"{name} needs Keras's TensorFlow backend. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}"
        )
