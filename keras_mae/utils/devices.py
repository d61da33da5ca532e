"""Keras's backend, and the devices that it sees."""

from typing import Any

import keras


def has_accelerator(strategy: Any = None) -> bool:
    """Whether the backend sees a GPU or a TPU that models run on."""
    if keras.backend.backend() == "jax":
        return jax_platform() != "cpu"
    if keras.backend.backend() == "torch":
        import torch

        return torch.cuda.is_available() or torch.backends.mps.is_available()
    import tensorflow as tf

    # a strategy may keep to the CPU of a machine with a GPU
    if gpus_in_use(strategy):
        return True
    return not _is_on_cpu(strategy) and bool(tf.config.list_physical_devices("TPU"))


def jax_platform() -> str:
    """Returns what JAX computes on: `"cpu"`, `"gpu"` or `"tpu"`."""
    import jax

    return jax.default_backend()


def gpus_in_use(strategy: Any = None) -> list:
    """Lists TensorFlow's GPUs; none where the strategy keeps to the CPU."""
    import tensorflow as tf

    return [] if _is_on_cpu(strategy) else tf.config.list_physical_devices("GPU")


def _is_on_cpu(strategy):
    """Whether a strategy, by default the current one, is that of `--strategy=cpu`."""
    import tensorflow as tf

    strategy = strategy or tf.distribute.get_strategy()
    one_device = isinstance(strategy, tf.distribute.OneDeviceStrategy)
    return one_device and "device:CPU" in strategy.extended.worker_devices[0]


def check_tensorflow_backend(name):
    """Raises where `name` would need TensorFlow, and Keras runs on another backend."""
    if keras.backend.backend() != "tensorflow":
        raise ValueError(
            f"{name} needs Keras's TensorFlow backend. Received: "
            f"KERAS_BACKEND={keras.backend.backend()}"
        )
