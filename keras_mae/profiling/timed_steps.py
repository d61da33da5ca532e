"""Benchmark steps on any Keras backend; each returns once its result is computed."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_mae.models import MAEClassifier, MAEEncoder, MAEPretrainer
from keras_mae.ops.fusion import auto_jit_compile
from keras_mae.optimizers.adamw import pretraining_optimizer
from keras_mae.optimizers.layer_decay import finetuning_optimizer
from keras_mae.profiling.costs import flops_per_image, forward_flops

_NUM_CLASSES = 1000


def make_step(
    mode,
    preset,
    batch_size,
    xla="auto",
    accumulation_steps=1,
    replicas=1,
    **overrides,
):
    """Builds a model with random weights; returns its step, and the step's FLOPs."""
    keras.utils.set_random_seed(0)
    training = {"pretrain-step": _pretraining, "finetune-step": _finetuning}
    inference = {"encode": _encoding, "reconstruct": _reconstruction}
    if mode in training:
        strategy, scope = None, contextlib.nullcontext()
        if replicas > 1:
            from keras_mae.utils.distribution import make_strategy

            strategy = make_strategy("mirrored", replicas)
            scope = strategy.scope()
        with scope:
            model, data = training[mode](
                preset, batch_size, xla, accumulation_steps, overrides
            )
            # as fit: outside of the step
            model.optimizer.build(model.trainable_variables)
        step = _training_step(model, data, strategy)
        return step, batch_size * flops_per_image(model)
    if mode not in inference:
        known = ", ".join([*training, *inference])
        raise ValueError(f"mode must be one of {known}. Received: {mode!r}")
    if replicas > 1:
        raise ValueError(f"replicas must be 1 for {mode!r}. Received: {replicas}")
    compiled = auto_jit_compile() if xla == "auto" else xla
    quantization = overrides.pop("quantize", None)
    model, function = inference[mode](preset, compiled, overrides)
    if quantization is not None:
        model.quantize(quantization)
    images = _draw_images(model, batch_size)
    step = _forward_step(model, function, images, compiled)
    return step, batch_size * forward_flops(model)


def _encoding(preset, compiled, overrides):
    overrides.pop("mask_ratio", None)
    model = MAEEncoder.from_preset(preset, **overrides)
    if keras.backend.backend() == "tensorflow":
        model.jit_compile = compiled
        model.make_predict_function()  # casts weights
        return model, model.predict_step
    return model, model


def _reconstruction(preset, compiled, overrides):
    model = MAEPretrainer.from_preset(preset, norm_pix_loss=True, **overrides)
    return model, lambda images: model.reconstruct(images, seed=0)["reconstruction"]


def _draw_images(model, batch_size):
    encoder = getattr(model, "encoder", model)
    shape = (batch_size, *encoder.image_size, encoder.num_channels)
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def _pretraining(preset, batch_size, xla, accumulation_steps, overrides):
    model = MAEPretrainer.from_preset(preset, norm_pix_loss=True, **overrides)
    model.compile(
        optimizer=pretraining_optimizer(1e-4),
        jit_compile=xla,
        accumulation_steps=accumulation_steps,
    )
    return model, _draw_images(model, batch_size)


def _finetuning(preset, batch_size, xla, accumulation_steps, overrides):
    overrides.pop("mask_ratio", None)
    model = MAEClassifier.from_preset(preset, num_classes=_NUM_CLASSES, **overrides)
    depth = len(model.encoder.blocks)
    model.compile(
        optimizer=finetuning_optimizer(1e-4, layer_decay=0.65, depth=depth),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=xla,
        accumulation_steps=accumulation_steps,
    )
    labels = np.arange(batch_size) % _NUM_CLASSES
    return model, (_draw_images(model, batch_size), labels)


def _training_step(model, data, strategy=None):
    """Returns the step that `fit` runs, without its loop."""
    if keras.backend.backend() == "jax":
        return _jax_training_step(model, data)
    if keras.backend.backend() == "torch":
        data = keras.tree.map_structure(ops.convert_to_tensor, data)
        return lambda: float(model.train_step(data)["loss"])
    import tensorflow as tf

    # as fit: a dataset's iterator goes into the graph
    batches = tf.data.Dataset.from_tensors(data).repeat()
    if strategy:
        batches = strategy.experimental_distribute_dataset(batches)
    batches = iter(batches)
    model.make_train_function()
    return lambda: float(model.train_function(batches)["loss"])


def _jax_training_step(model, data):
    import jax

    groups = (
        model.trainable_variables,
        model.non_trainable_variables,
        model.optimizer.variables,
        model.metrics_variables,
    )
    # copies: the step overwrites what it is given
    state = [[jax.numpy.copy(variable.value) for variable in group] for group in groups]
    update = model.train_step
    if model.jit_compile:
        update = jax.jit(update, donate_argnums=0)
    data = jax.device_put(data)

    def step():
        nonlocal state
        results, state = update(state, data)
        return float(results["loss"])

    return step


def _jax_forward(model, function):
    """Compiles with the weights as arguments, as `predict`: not constants to fold."""
    import jax

    variables = model.variables

    @jax.jit
    def compute(values, images):
        with keras.StatelessScope(list(zip(variables, values, strict=True))):
            return function(images)

    values = [variable.value for variable in variables]
    return lambda images: compute(values, images)


def _forward_step(model, function, images, compiled):
    backend = keras.backend.backend()
    images = ops.convert_to_tensor(images)
    context = contextlib.nullcontext()
    if backend == "tensorflow":
        import tensorflow as tf

        function = tf.function(function, jit_compile=compiled)
    elif backend == "jax":
        function = _jax_forward(model, function)
    else:
        import torch

        context = torch.no_grad()

    def step():
        with context:
            # a number that needs the whole result
            return float(ops.cast(ops.max(function(images)), "float32"))

    return step
