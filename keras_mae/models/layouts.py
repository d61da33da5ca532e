"""Which weights `keras.distribution.ModelParallel` divides among devices, and how."""

import keras


def get_layout_map(
    device_mesh: keras.distribution.DeviceMesh, model_axis: str = "model"
) -> keras.distribution.LayoutMap:
    """Builds the layout map of our models for `keras.distribution.ModelParallel`.

    Every kernel is divided among the devices of `model_axis`: the first one of
    attention and of an MLP by its outputs, with its bias, the second one by its inputs.
    Norms, tokens, positions and the other biases are small, and each device has them
    whole. The optimizer's moments lie where their weights do.

    Args:
        device_mesh: A `keras.distribution.DeviceMesh`, say of shape `(2, 4)` with the
            axes `("batch", "model")`. The size of `model_axis` must divide the
            model's widths (`hidden_dim` and `mlp_dim`, of the decoder too).
        model_axis: Name of the mesh's axis to divide kernels along.

    Returns:
        A `keras.distribution.LayoutMap`.

    Raises:
        ValueError: If the mesh has no such axis.

    Example:

    ```python
    devices = [f"cpu:{index}" for index in range(4)]
    mesh = keras.distribution.DeviceMesh((2, 2), ("batch", "model"), devices)
    layout_map = get_layout_map(mesh)
    kernel = layout_map["mae_encoder/block_0/mlp/fc1/kernel"]
    assert kernel.axes == (None, "model")
    ```
    """
    if model_axis not in device_mesh.axis_names:
        raise ValueError(
            f"device_mesh must have the axis {model_axis!r}. Received: the axes "
            f"{tuple(device_mesh.axis_names)}"
        )
    layout_map = keras.distribution.LayoutMap(device_mesh)
    by_outputs, by_inputs = "(qkv|fc1|projection|embed)", "(proj|fc2|pred|head)"
    layout_map[f".*\\b{by_outputs}/kernel"] = (None, model_axis)
    layout_map[f".*\\b{by_outputs}/bias"] = (model_axis,)
    layout_map[f".*\\b{by_inputs}/kernel"] = (model_axis, None)
    return layout_map
