"""Mixins of the models: fused inference, quantization, LoRA, unused weights."""

import contextlib
import warnings
from typing import Any

import keras

from keras_mae.layers.adapted import lora
from keras_mae.layers.dense import Dense
from keras_mae.layers.freezing import KeepsFrozenParts
from keras_mae.ops.cast_kernels import CastKernels
from keras_mae.ops.fusion import fusion_scope, runs_as_cpu_graph, should_fuse
from keras_mae.ops.tracing import cpu_graph_scope
from keras_mae.utils.typing import PathLike

# gptq and awq are for language models
QUANTIZATION_MODES = ("int8", "int4", "float8")


class FusedInference:
    """Mixin: `predict` and `evaluate` use fused ops; `export` knows the image shape."""

    _cast_kernels: CastKernels | None = None

    # not of a plain call, which may be eager, and is what an exported model traces
    @contextlib.contextmanager
    def fused_inference(self):
        """Gives the context in which a step of `predict` or `evaluate` runs."""
        fuses = should_fuse(self.jit_compile, self.count_params())
        copies = contextlib.nullcontext()
        if self._cast_kernels is not None:
            copies = self._cast_kernels.scope()
        graph = cpu_graph_scope(runs_as_cpu_graph(self.jit_compile))
        with graph, fusion_scope(fuses), copies:
            yield

    # Keras calls these whenever it predicts or evaluates
    def make_predict_function(self, force: bool = False) -> Any:
        self._cast_once()
        return super().make_predict_function(force)  # type: ignore

    def make_test_function(self, force: bool = False) -> Any:
        self._cast_once()
        return super().make_test_function(force)  # type: ignore

    def _cast_once(self):
        """Casts the blocks' kernels for all batches to come."""
        if self.compute_dtype == self.variable_dtype or self.run_eagerly:
            return
        if not runs_as_cpu_graph(self.jit_compile):
            return
        self._cast_kernels = self._cast_kernels or CastKernels()
        if self._cast_kernels.refresh(casting_layers(self)):
            # they were traced with a copy that is gone
            self.test_function = self.predict_function = None

    def export(self, filepath: PathLike, *args: Any, **kwargs: Any) -> None:
        """Exports the plain call, as `keras.Model.export` does, of image batches."""
        encoder: Any = getattr(self, "encoder", self)
        shape = (None, *encoder.image_size, encoder.num_channels)
        kwargs.setdefault("input_signature", [keras.InputSpec("float32", shape)])
        super().export(filepath, *args, **kwargs)  # type: ignore

    def predict_step(self, *arguments: Any) -> Any:
        with self.fused_inference():
            return super().predict_step(*arguments)  # type: ignore

    def test_step(self, *arguments: Any) -> Any:
        with self.fused_inference():
            return super().test_step(*arguments)  # type: ignore


def casting_layers(model: keras.Model) -> list[Dense]:
    """Lists the dense layers that cast their kernel at each call."""
    return [
        layer
        for layer in model._flatten_layers()
        if type(layer) is Dense
        and layer.compute_dtype != layer.variable_dtype
        and not (lora(layer) or layer.quantization_mode)
    ]


class Adaptable:
    """Mixin: `quantize` by the modes that suit images, and `merge_lora`."""

    def quantize(
        self, mode: str | None = None, config: Any = None, **kwargs: Any
    ) -> None:
        """Quantizes the dense layers, as `keras.Model.quantize` does.

        The layers compute from 8 or 4 bits; all that lies between them stays as it is.
        The quantized weights are not trainable. Saved, loaded and cloned, the model
        stays quantized.

        Args:
            mode: `"int8"`: weights and inputs are rounded to 8 bits; `"int4"`: weights
                to 4 bits; `"float8"`: for training in 8 bits, where weights stay float.
            config: A `keras.quantizers.QuantizationConfig` instead of the mode's own.
            **kwargs: Those of `keras.Model.quantize`, as `filters`: a regular
                expression, or a function of a layer, for the layers to quantize.

        Raises:
            ValueError: If the mode is another one, or the model is quantized.

        Example:

        ```python
        encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
        encoder.quantize("int8")
        assert encoder.blocks[0].mlp.fc1.kernel.dtype == "int8"
        ```
        """
        if mode not in QUANTIZATION_MODES:
            raise ValueError(
                f"mode must be one of {', '.join(QUANTIZATION_MODES)}: Keras's others "
                f"are calibrated on tokens of text. Received: {mode!r}"
            )
        with warnings.catch_warnings():
            # Keras warns of each layer that has no kernel
            text = r"Layer \w+ does not have a `quantize` method"
            warnings.filterwarnings("ignore", text)
            super().quantize(mode, config=config, **kwargs)  # type: ignore

    def merge_lora(self) -> None:
        """Adds what LoRA has learned to the kernels, and drops LoRA's matrices.

        Outputs stay the same, but for rounding. The kernels that it adapted are trained
        again; all else that it had frozen stays frozen. A compiled model must be
        compiled anew.

        Example:

        ```python
        encoder = keras_mae.MAEEncoder.from_preset("mae_tiny")
        encoder.enable_lora(rank=4)
        encoder.merge_lora()
        assert not encoder.blocks[0].attention.qkv.lora_enabled
        ```
        """
        for layer in self._flatten_layers():  # type: ignore
            if isinstance(layer, Dense):
                layer.merge_lora()
            if isinstance(layer, KeepsFrozenParts):
                layer._lora = {}  # else what is enabled next would bring it back
        # they were traced with LoRA
        self.train_function = self.test_function = self.predict_function = None


def allow_new_layers(model: keras.Model) -> None:
    """Lets subclasses add layers after `super().__init__()`, which built the model."""
    # Keras closes a layer once it is built, as ours are when they are made
    # Keras has no public way, and calls what a model's own __init__ adds allowed
    model._tracker.unlock()


class ExcludesUnusedWeights:
    """Mixin: layers of a shared encoder that get no gradient are not trained."""

    # left out, not frozen: the encoder may be trained as a whole elsewhere
    def unused_layers(self) -> list[keras.Layer]:
        """Lists the layers that are not trained."""
        raise NotImplementedError

    @property
    def trainable_weights(self) -> list[keras.Variable]:
        return self._without_unused(super().trainable_weights)  # type: ignore

    @property
    def trainable_variables(self) -> list[keras.Variable]:
        return self._without_unused(super().trainable_variables)  # type: ignore

    @property
    def non_trainable_weights(self) -> list[keras.Variable]:
        return self._with_unused(super().non_trainable_weights)  # type: ignore

    @property
    def non_trainable_variables(self) -> list[keras.Variable]:
        return self._with_unused(super().non_trainable_variables)  # type: ignore

    def _unused(self):
        return {id(one): one for layer in self.unused_layers() for one in layer.weights}

    def _without_unused(self, variables):
        unused = self._unused()
        return [variable for variable in variables if id(variable) not in unused]

    def _with_unused(self, variables):
        frozen = {id(variable): variable for variable in variables}
        return list({**frozen, **self._unused()}.values())
