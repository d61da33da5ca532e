"""What lets a subclass of a model add layers of its own."""

import keras


def leave_open(model: keras.Model) -> None:
    """Lets subclasses add layers after `super().__init__()`, which built the model.

    Keras closes a layer to new layers and weights once it is built; ours are built when
    they are made, so that their weights are there from the beginning.

    Args:
        model: A model at the end of its `__init__`.

    Example:

    ```python
    class Rotation(keras_mae.MAEClassifier):
        def __init__(self, encoder, num_classes, **kwargs):
            super().__init__(encoder, num_classes, **kwargs)
            self.angle = keras.layers.Dense(1)

    Rotation(keras_mae.MAEEncoder.from_preset("mae_tiny"), num_classes=4)
    ```
    """
    # Keras has no public way, and calls what a model's own __init__ adds allowed
    model._tracker.unlock()
