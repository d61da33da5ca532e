"""Strategies of `--strategy` on Keras's JAX backend, by `keras.distribution`."""

import contextlib
import os

import jax
import keras
import tensorflow as tf

from keras_mae.models.layouts import get_layout_map

JAX_STRATEGIES = ("cpu", "gpu", "data_parallel", "model_parallel")


class JaxStrategy:
    """A `keras.distribution`, or none, with methods of a `tf.distribute.Strategy`."""

    def __init__(self, distribution=None):
        self.num_replicas_in_sync, self._shape = 1, None
        if distribution is not None:
            # a replica has `model_shards` devices
            self.num_replicas_in_sync = distribution.num_model_replicas
            self._shape = distribution.device_mesh.shape
        # not a scope: `fit` and `evaluate` need it as much as what creates variables
        keras.distribution.set_distribution(distribution)

    @contextlib.contextmanager
    def scope(self):
        """Gives the context in which a model is built."""
        try:
            yield
        except ValueError as error:
            if self._shape is None or "evenly divide" not in str(error):
                raise
            raise ValueError(
                "model_shards must divide the model's widths: hidden_dim and mlp_dim, "
                f"of the decoder too. Received: model_shards={self._shape[-1]}"
            ) from error

    def distribute_datasets_from_function(self, make_batches):
        """Returns global batches of those that a function makes for each replica."""
        replicas = self.num_replicas_in_sync
        batches = make_batches(tf.distribute.InputContext(1, 0, replicas))
        if replicas == 1:
            return batches

        def join(tensor):
            shape = (replicas * tensor.shape[1], *tensor.shape[2:])
            return tf.reshape(tensor, shape)  # (R * B, ...)

        def join_all(*batch):
            batch = batch if len(batch) > 1 else batch[0]
            return tf.nest.map_structure(join, batch)

        return batches.batch(replicas, drop_remainder=True).map(join_all)


def make_jax_strategy(name, replicas=None, model_shards=None, tpu=None):
    """Returns the `JaxStrategy` that a script's `--strategy` names."""
    if name is None:
        name = "cpu" if jax.default_backend() == "cpu" else "gpu"
    _check_flags(name, replicas, model_shards, tpu)
    with contextlib.suppress(RuntimeError):  # TensorFlow is initialized already
        tf.config.set_visible_devices([], "GPU")  # JAX needs their memory
    if name == "cpu":
        jax.config.update("jax_platforms", "cpu")
    if name in ("cpu", "gpu"):
        if (jax.default_backend() == "cpu") != (name == "cpu"):
            raise ValueError(
                f"strategy {name!r} needs a {name.upper()}. JAX found "
                f"{jax.default_backend()}"
            )
        return JaxStrategy()
    shards = model_shards or 1
    # by default all GPUs or TPUs; on CPUs logical devices, by default two replicas
    devices = _devices(replicas, shards)
    if name == "data_parallel":
        return JaxStrategy(keras.distribution.DataParallel(devices=devices))
    mesh = keras.distribution.DeviceMesh(
        (len(devices) // shards, shards), ("batch", "model"), devices
    )
    return JaxStrategy(
        keras.distribution.ModelParallel(
            layout_map=get_layout_map(mesh), batch_dim_name="batch"
        )
    )


def _check_flags(name, replicas, model_shards, tpu):
    if name not in JAX_STRATEGIES:
        raise ValueError(
            f"On JAX strategy must be one of {', '.join(JAX_STRATEGIES)}. "
            f"Received: {name!r}"
        )
    if tpu is not None:
        raise ValueError(f"On JAX tpu must not be given. Received: {tpu!r}")
    if name in ("cpu", "gpu") and replicas not in (None, 1):
        raise ValueError(
            "Only strategies 'data_parallel' and 'model_parallel' take replicas. "
            f"Received: {name!r}, {replicas}"
        )
    if (name == "model_parallel") != (model_shards is not None):
        raise ValueError(
            "Strategy 'model_parallel', and no other, takes model_shards. "
            f"Received: {name!r}, {model_shards}"
        )
    for flag, value in {"replicas": replicas, "model_shards": model_shards}.items():
        if value is not None and value < 1:
            raise ValueError(f"{flag} must be at least 1. Received: {value}")
    if os.environ.get("KERAS_DISTRIBUTION_NUM_PROCESSES", "1") != "1":
        raise ValueError(
            "On JAX a run has one process, with all devices of its machine. Received: "
            "KERAS_DISTRIBUTION_NUM_PROCESSES="
            f"{os.environ['KERAS_DISTRIBUTION_NUM_PROCESSES']}"
        )


def _devices(replicas, shards):
    """Lists the names of the devices to use: accelerators, else logical CPU devices."""
    cpus = (replicas or 2) * shards
    with contextlib.suppress(RuntimeError):  # JAX is initialized: they can't change
        jax.config.update("jax_num_cpu_devices", cpus)
    devices = keras.distribution.list_devices()
    on_cpu = jax.default_backend() == "cpu"
    wanted = cpus if on_cpu else (replicas or max(1, len(devices) // shards)) * shards
    if len(devices) < wanted:
        raise ValueError(
            f"{wanted} devices are needed for replicas * model_shards. JAX found "
            f"{', '.join(devices)}"
        )
    return devices[:wanted]
