"""Functions and objects of Keras as configuration."""

import random
from typing import Any


def serialized(module: Any, value: Any, name: str) -> Any:
    """Serializes what `module`, such as `keras.initializers`, can read back."""
    # several layers are made of the configuration of one object
    try:
        config = module.serialize(module.get(value))
        # reading an initializer back takes a seed, and later weights would differ
        state = random.getstate()
        module.get(config)
        random.setstate(state)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must be one of {module.__name__}, or registered with Keras: put "
            "@keras.saving.register_keras_serializable(package=...) before your own. "
            f"Received: {value!r}"
        ) from error
    return config
