"""Names of strategies to `tf.distribute` strategies."""

import tensorflow as tf

STRATEGIES = ("cpu", "gpu", "mirrored")


def make_strategy(name, replicas=None):
    """Builds the strategy that a script's `--strategy` names.

    Args:
        name: `"cpu"` or `"gpu"`, one device; `"mirrored"`, a copy of the model on each
            GPU, or, without GPUs, on each of `replicas` logical CPU devices.
        replicas: Int, how many devices `"mirrored"` uses; by default all GPUs, or two
            logical CPU devices.

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
    if name == "mirrored":
        return tf.distribute.MirroredStrategy(_mirrored_devices(replicas))
    if replicas not in (None, 1):
        raise ValueError(
            f"Only strategy 'mirrored' takes replicas. Received: {name!r}, {replicas}"
        )
    if name == "gpu" and not tf.config.list_physical_devices("GPU"):
        raise ValueError("strategy 'gpu' needs a GPU. TensorFlow sees none here")
    return tf.distribute.OneDeviceStrategy(f"/{name}:0")


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
