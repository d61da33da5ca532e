"""`tf.distribute` strategies of `--strategy`, and multi-worker helpers."""

import json
import logging
import os
import socket
import urllib.parse

import tensorflow as tf

from keras_mae.utils.devices import check_tensorflow_backend

_logger = logging.getLogger("keras_mae")

STRATEGIES = ("cpu", "gpu", "mirrored", "multiworker", "tpu")


def make_strategy(name, replicas=None, tpu=None):
    """Returns the `tf.distribute.Strategy` that a script's `--strategy` names."""
    check_tensorflow_backend("tf.distribute")
    gpus = tf.config.list_physical_devices("GPU")
    if name is None:
        name = "gpu" if gpus else "cpu"
    if name not in STRATEGIES:
        raise ValueError(
            f"strategy must be one of {', '.join(STRATEGIES)}. Received: {name!r}"
        )
    if name != "mirrored" and replicas not in (None, 1):
        raise ValueError(
            f"Only strategy 'mirrored' takes replicas. Received: {name!r}, {replicas}"
        )
    if name != "tpu" and tpu is not None:
        raise ValueError(f"Only strategy 'tpu' takes tpu. Received: {name!r}, {tpu!r}")
    if name == "mirrored":
        # all GPUs, or so many; without GPUs logical CPU devices, by default two
        return tf.distribute.MirroredStrategy(_mirrored_devices(replicas))
    if name == "multiworker":
        # raises where TF_CONFIG is wrong
        if read_tf_config()[0] == [None]:
            _logger.warning("TF_CONFIG is not set: this process is the only worker")
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _connect_to_tpu(tpu or "local")
    if name == "gpu" and not gpus:
        raise ValueError("strategy 'gpu' needs a GPU. TensorFlow found none")
    if not gpus:
        # one CPU is TensorFlow's default, whose data sets need no copy to a device
        return tf.distribute.get_strategy()
    return tf.distribute.OneDeviceStrategy(f"/{name}:0")


def read_tf_config():
    """Returns the workers' addresses, the chief's first, and this process's index."""
    text = os.environ.get("TF_CONFIG")
    if not text:
        return [None], 0  # one worker, without an address
    try:
        config = json.loads(text)
        cluster = config["cluster"]
        chief = cluster.get("chief", [])
        workers = [*chief, *cluster.get("worker", [])]
        index = int(config["task"]["index"])
        if config["task"]["type"] == "worker":
            index += len(chief)
        workers[index]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            'TF_CONFIG must look like {"cluster": {"worker": ["host:port", ...]}, '
            f'"task": {{"type": "worker", "index": 0}}}}. Received: {text}'
        ) from error
    return workers, index


def is_chief(strategy):
    """Whether this process writes files: of several workers, the first does."""
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return read_tf_config()[1] == 0
    return True


def run_on_all_workers(strategy, function):
    """Runs a function that returns an int >= 0; where one worker's raises, all do."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return function()
    # else the others would wait for the one that is gone
    error, value = None, -1
    try:
        value = function()
    except (ValueError, OSError) as raised:
        error = raised
    values = strategy.run(lambda: tf.constant([value], tf.int64))
    values = set(strategy.gather(values, axis=0).numpy().tolist())
    if error is not None:
        raise error
    if -1 in values:
        raise ValueError("Another worker failed; its log says why")
    if len(values) > 1:
        raise ValueError(
            "All workers must see the same checkpoints, in a folder that they share. "
            f"Received the steps {sorted(values)}"
        )
    return value


def _connect_to_tpu(address):
    """Connects to a TPU and initializes its system, which clears its memory."""
    try:
        _check_reachable(address)
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=address)
        if address != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
        return tf.distribute.TPUStrategy(resolver)
    # what is raised depends on what is missing: driver, cores, address
    except (ValueError, RuntimeError, OSError, ImportError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            "strategy 'tpu' needs a TPU, and TensorFlow's build for it "
            f"(pip install tensorflow-tpu). Received: tpu={address!r}: {reason}"
        ) from error


def _check_reachable(address):
    """Raises if a `grpc://host:port` refuses connections: TensorFlow would wait."""
    place = urllib.parse.urlsplit(address)
    if place.scheme == "grpc":
        socket.create_connection((place.hostname, place.port or 8470), 10).close()


def _mirrored_devices(replicas):
    """Lists the devices to mirror over: GPUs, else logical CPU devices."""
    gpus = tf.config.list_physical_devices("GPU")
    if replicas is not None and (replicas < 1 or (gpus and replicas > len(gpus))):
        raise ValueError(
            f"replicas must be in [1, {len(gpus) or 'any'}]. Received: {replicas}"
        )
    if gpus:
        return [f"/gpu:{index}" for index in range(replicas or len(gpus))]
    replicas = replicas or 2
    cpu = tf.config.list_physical_devices("CPU")[0]
    devices = [tf.config.LogicalDeviceConfiguration() for _ in range(replicas)]
    try:
        tf.config.set_logical_device_configuration(cpu, devices)
    except RuntimeError as error:
        # TensorFlow is initialized: its devices can't change any more
        if len(tf.config.list_logical_devices("CPU")) < replicas:
            raise ValueError(
                f"{replicas} logical CPU devices can only be created before "
                "TensorFlow's first operation"
            ) from error
    return [f"/cpu:{index}" for index in range(replicas)]
