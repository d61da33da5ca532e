"""Names of strategies to `tf.distribute` strategies, and what a worker is told."""

import json
import os
import socket
import urllib.parse

import tensorflow as tf

STRATEGIES = ("cpu", "gpu", "mirrored", "multiworker", "tpu")


def make_strategy(name, replicas=None, tpu=None):
    """Builds the strategy that a script's `--strategy` names.

    Args:
        name: `"cpu"` or `"gpu"`, one device; `"mirrored"`, a copy of the model on each
            GPU, or, without GPUs, on each of `replicas` logical CPU devices;
            `"multiworker"`, a copy on each device of each worker that the environment
            variable `TF_CONFIG` lists; `"tpu"`, on each core of a TPU.
        replicas: Int, how many devices `"mirrored"` uses; by default all GPUs, or two
            logical CPU devices.
        tpu: Str, the name or address of the TPU; by default `"local"`, the one this
            machine belongs to.

    Returns:
        A `tf.distribute.Strategy`.

    Raises:
        ValueError: If the name is unknown or the machine lacks the devices.

    Example:

    ```python
    strategy = make_strategy("cpu")
    with strategy.scope():
        model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    ```
    """
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
        return tf.distribute.MirroredStrategy(_mirrored_devices(replicas))
    if name == "multiworker":
        cluster()  # raises where TF_CONFIG is wrong
        return tf.distribute.MultiWorkerMirroredStrategy()
    if name == "tpu":
        return _connect_to_tpu(tpu or "local")
    if name == "gpu" and not tf.config.list_physical_devices("GPU"):
        raise ValueError("strategy 'gpu' needs a GPU. TensorFlow sees none here")
    if not tf.config.list_physical_devices("GPU"):
        # one CPU is TensorFlow's default, whose data sets need no copy to a device
        return tf.distribute.get_strategy()
    return tf.distribute.OneDeviceStrategy(f"/{name}:0")


def cluster():
    """Reads from `TF_CONFIG` who the workers are, and which of them this process is.

    Returns:
        A tuple: list of addresses, the first of which is the chief's, and this
        process's place in it. Without `TF_CONFIG` one worker, of no address.

    Raises:
        ValueError: If `TF_CONFIG` is not as TensorFlow wants it.

    Example:

    ```python
    addresses, index = cluster()
    is_chief = index == 0
    ```
    """
    text = os.environ.get("TF_CONFIG")
    if not text:
        return [None], 0
    try:
        config = json.loads(text)
        workers = config["cluster"].get("chief", []) + config["cluster"]["worker"]
        index = int(config["task"]["index"])
        if config["task"]["type"] == "worker":
            index += len(config["cluster"].get("chief", []))
        workers[index]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(
            'TF_CONFIG must be as {"cluster": {"worker": ["host:port", ...]}, "task": '
            f'{{"type": "worker", "index": 0}}}}. Received: {text}'
        ) from error
    return workers, index


def is_chief(strategy):
    """Says whether this process is the one that writes files.

    Args:
        strategy: A `tf.distribute.Strategy`.

    Returns:
        Bool; `True` except on all but the first worker of several.

    Example:

    ```python
    assert is_chief(make_strategy("cpu"))
    ```
    """
    if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return cluster()[1] == 0
    return True


def run_on_all_workers(strategy, function):
    """Runs a function on each worker, which all fail where one of them does.

    Else the others would wait for one that is gone, and take it for a lost worker.

    Args:
        strategy: A `tf.distribute.Strategy`.
        function: Function without arguments that returns an int of at least 0, the same
            on all workers, and raises `ValueError` or `OSError` where it must not go
            on.

    Returns:
        Int, what the function returned.

    Raises:
        ValueError: If the function raised on another worker, or returned something
            else there.

    Example:

    ```python
    assert run_on_all_workers(make_strategy("cpu"), lambda: 3) == 3
    ```
    """
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return function()
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
        raise ValueError("Another worker refused; it says why")
    if len(values) > 1:
        raise ValueError(
            "All workers must see the same checkpoints: --output must be a folder that "
            f"they share. Received the steps {sorted(values)}"
        )
    return value


def _connect_to_tpu(address):
    """Connects to a TPU and starts its system, which clears its memory."""
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
    """Raises where nobody listens at a `grpc://host:port`: TensorFlow would wait."""
    place = urllib.parse.urlsplit(address)
    if place.scheme == "grpc":
        socket.create_connection((place.hostname, place.port or 8470), 10).close()


def _mirrored_devices(replicas):
    """Lists the devices to mirror over, splitting the CPU where there is no GPU."""
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
        # TensorFlow is running: its devices can't change any more
        if len(tf.config.list_logical_devices("CPU")) < replicas:
            raise ValueError(
                f"{replicas} CPU replicas must be asked for before TensorFlow's first "
                "operation"
            ) from error
    return [f"/cpu:{index}" for index in range(replicas)]
