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

    @property
    def non_trainable_weights(self):
        return self._with_unused(super().non_trainable_weights)

    @property
    def non_trainable_variables(self):
        return self._with_unused(super().non_trainable_variables)

    def _unused(self):
        return {id(one): one for layer in self.unused_layers() for one in layer.weights}

    def _without_unused(self, variables):
        unused = self._unused()
        return [variable for variable in variables if id(variable) not in unused]

    def _with_unused(self, variables):
        frozen = {id(variable): variable for variable in variables}
        return list({**frozen, **self._unused()}.values())
