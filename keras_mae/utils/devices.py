"""Which devices the Keras backend sees."""

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
