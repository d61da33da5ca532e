"""The steps that are measured: functions that return when their result is there."""

import contextlib

import keras
import numpy as np
from keras import ops

from keras_mae.models import MAEClassifier, MAEEncoder
from keras_mae.models.pretrainer import MAEPretrainer
from keras_mae.ops.fusion import auto_jit_compile
from keras_mae.optimizers.adamw import pretraining_optimizer
from keras_mae.optimizers.layer_decay import finetuning_optimizer
from keras_mae.profiling.costs import flops_per_image

CLASSES = 1000


def make_step(
    mode,
    preset,
    batch_size,
    xla="auto",
    accumulation_steps=1,
    replicas=1,
    **overrides,
):
    """Builds a model with fresh weights and a step of it, on any backend of Keras.

    Args:
        mode: `"pretrain-step"`, `"finetune-step"`, `"encode"` or `"reconstruct"`.
        preset: Name of a preset.
        batch_size: Int, images a step.
        xla: As `compile`'s `jit_compile`: `True`, `False` or `"auto"`.
        accumulation_steps: Int, the parts of a training step's batch.
        replicas: Int, the logical devices that a training step's batch is split over.
        **overrides: Constructor arguments of the model, as for `from_preset`.

    Returns:
        A tuple: the step, a function without arguments, and its FLOPs, a float.

    Raises:
        ValueError: If the mode is unknown, or needs another backend.

    Example:

    ```python
    step, flops = make_step("encode", "mae_tiny", batch_size=2)
    step()
    assert flops > 1e6
    ```
    """
    keras.utils.set_random_seed(0)
    training = {"pretrain-step": _pretraining, "finetune-step": _finetuning}
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
        flops = batch_size * flops_per_image(model)
        return _training_step(model, data, strategy), flops
    if replicas > 1:
        raise ValueError(f"Only a training step has replicas. Received: {replicas}")
    compiled = auto_jit_compile() if xla == "auto" else xla
    if mode == "encode":
        overrides.pop("mask_ratio", None)
        model = MAEEncoder.from_preset(preset, **overrides)
        function = model
        if keras.backend.backend() == "tensorflow":
            model.jit_compile = compiled
            function = model.predict_step
    elif mode == "reconstruct":
        model = MAEPretrainer.from_preset(preset, norm_pix_loss=True, **overrides)

        def function(images):
            return model.reconstruct(images, seed=0)["reconstruction"]

    else:
        raise ValueError(f"mode must be a step's. Received: {mode!r}")
    step = _forward_step(function, _draw_images(model, batch_size), compiled)
    return step, batch_size * flops_per_image(model) / 3


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
    model = MAEClassifier.from_preset(preset, num_classes=CLASSES, **overrides)
    depth = len(model.encoder.blocks)
    model.compile(
        optimizer=finetuning_optimizer(1e-4, layer_decay=0.65, depth=depth),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=xla,
        accumulation_steps=accumulation_steps,
    )
    labels = np.arange(batch_size) % CLASSES
    return model, (_draw_images(model, batch_size), labels)


def _training_step(model, data, strategy=None):
    """Makes what `fit` runs at each step, without its loop."""
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


def _forward_step(function, images, compiled):
    backend = keras.backend.backend()
    images = ops.convert_to_tensor(images)
    context = contextlib.nullcontext()
    if backend == "tensorflow":
        import tensorflow as tf

        function = tf.function(function, jit_compile=compiled)
    elif backend == "jax":
        import jax

        function = jax.jit(function)
    else:
        import torch

        context = torch.no_grad()

    def step():
        with context:
            # a number that needs the whole result
            return float(ops.cast(ops.max(function(images)), "float32"))

    return step
