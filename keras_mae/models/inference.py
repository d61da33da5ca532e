"""Prediction and evaluation by the fast path of the machine, and Keras's export."""

import contextlib

import keras

from keras_mae.fusion import fusing, fusing_pays, plain_cpu
from keras_mae.tracing import cpu_graph


class FusedInference:
    """Mixin for a `keras.Model` of images whose `predict` and `evaluate` fuse.

    They do where it pays; and `export` needs no `input_signature`.

    A plain call doesn't: it may be eager, where compiling is not expected, and it is
    what an exported model traces.

    Example:

    ```python
    encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
    tokens = encoder.predict(np.zeros((2, 32, 32, 3)), verbose=0)
    assert tokens.shape[:2] == (2, 65)
    ```
    """

    @contextlib.contextmanager
    def fused_inference(self):
        """Gives the context in which a step of `predict` or `evaluate` runs."""
        fuses = fusing_pays(self.jit_compile, self.count_params())
        with cpu_graph(plain_cpu(self.jit_compile)), fusing(fuses):
            yield

    def export(self, filepath, *args, **kwargs):
        """Exports the plain call, as `keras.Model.export` does.

        Args:
            filepath: Path of what is written.
            *args: Those of `keras.Model.export`.
            **kwargs: Those of `keras.Model.export`; by default `input_signature` is a
                batch of images of the model's size.
        """
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
