"""Weights of a shared part that a model has no use for."""

import keras


class LeavesOut:
    """Mixin for a `keras.Model` that doesn't train some layers of a part it shares.

    Such layers have no gradient. They are left out of what is trained, not frozen: the
    part may be trained as a whole elsewhere.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
    model = keras_mae.MAEClassifier(encoder, num_classes=3, pooling="mean")
    assert encoder.norm in model.unused_layers()
    ```
    """

    def unused_layers(self) -> list[keras.Layer]:
        """Lists the layers that are not trained.

        Returns:
            A list of `keras.Layer`.
        """
        raise NotImplementedError

    @property
    def trainable_weights(self):
        return self._without_unused(super().trainable_weights)

    @property
    def trainable_variables(self):
        return self._without_unused(super().trainable_variables)

    def _without_unused(self, variables):
        layers = self.unused_layers()
        unused = {id(weight) for layer in layers for weight in layer.weights}
        return [variable for variable in variables if id(variable) not in unused]
