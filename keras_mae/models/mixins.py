"""Mixins of the models: fused inference, new layers in subclasses, unused weights."""

import contextlib

import keras

from keras_mae.ops.fusion import fusion_scope, runs_as_cpu_graph, should_fuse
from keras_mae.ops.tracing import cpu_graph_scope


class FusedInference:
    """Mixin: `predict` and `evaluate` use fused ops; `export` knows the image shape.

    A plain call does not fuse: it may be eager, where compiling is not expected, and it
    is what an exported model traces.
    """

    @contextlib.contextmanager
    def fused_inference(self):
        """Gives the context in which a step of `predict` or `evaluate` runs."""
        fuses = should_fuse(self.jit_compile, self.count_params())
        with cpu_graph_scope(runs_as_cpu_graph(self.jit_compile)), fusion_scope(fuses):
            yield

    def export(self, filepath, *args, **kwargs):
        """Exports the plain call, as `keras.Model.export` does, of image batches."""
        encoder = getattr(self, "encoder", self)
        shape = (None, *encoder.image_size, encoder.num_channels)
        kwargs.setdefault("input_signature", [keras.InputSpec("float32", shape)])
        super().export(filepath, *args, **kwargs)

    def predict_step(self, *arguments):
        with self.fused_inference():
            return super().predict_step(*arguments)

    def test_step(self, *arguments):
        with self.fused_inference():
            return super().test_step(*arguments)


def allow_new_layers(model: keras.Model) -> None:
    """Lets subclasses add layers after `super().__init__()`, which built the model.

    Keras closes a layer to new layers and weights once it is built; ours are built when
    they are made, so that their weights are there from the beginning.
    """
    # Keras has no public way, and calls what a model's own __init__ adds allowed
    model._tracker.unlock()


class ExcludesUnusedWeights:
    """Mixin: layers of a shared encoder that get no gradient are not trained weights.

    They are left out, not frozen: the encoder may be trained as a whole elsewhere.
    """

    def unused_layers(self) -> list[keras.Layer]:
        """Lists the layers that are not trained."""
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
