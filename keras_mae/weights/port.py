"""Copies weights by table, exactly: every key used, every variable filled."""

import functools

import numpy as np
from keras import ops

from keras_mae.weights.tables import TRANSFORMS


class PortError(ValueError):
    """Says which keys and variables of a port did not meet, sorted."""


def find_variable(model, path):
    """Follows a dotted path from a model to one of its variables.

    Args:
        model: A Keras model.
        path: Attribute names and list indices joined by dots.

    Returns:
        A `keras.Variable`.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    kernel = find_variable(model, "encoder.blocks.0.mlp.fc1.kernel")
    ```
    """

    def step(node, part):
        return node[int(part)] if part.isdigit() else getattr(node, part)

    return functools.reduce(step, path.split("."), model)


def _parameters(model):
    """Lists a model's weights without the state of its metrics and generators."""
    return [v for part in (model.encoder, model.decoder) for v in part.weights]


def import_weights(model, state, rows):
    """Fills a model from a foreign state dict; on any difference changes nothing.

    Args:
        model: The model to fill.
        state: Dict from foreign key to NumPy array.
        rows: List of `Row` for this model and this source.

    Raises:
        PortError: If a key is missing, left over, or of another shape.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    rows = keras_mae.weights.huggingface_rows(model)
    state = keras_mae.weights.export_weights(model, rows)
    keras_mae.weights.import_weights(model, state, rows)
    ```
    """
    keys = {key for row in rows for key in row.keys}
    problems = [f"missing key: {key}" for key in sorted(keys - set(state))]
    problems += [
        f"unused key: {key} {np.shape(state[key])}" for key in sorted(set(state) - keys)
    ]
    filled = {id(find_variable(model, row.path)) for row in rows}
    problems += [
        f"unfilled variable: {variable.path}"
        for variable in _parameters(model)
        if id(variable) not in filled
    ]
    values = {}
    for row in rows:
        if not all(key in state for key in row.keys):
            continue
        wanted = tuple(find_variable(model, row.path).shape)
        arrays = [np.asarray(state[key]) for key in row.keys]
        received = ", ".join(str(array.shape) for array in arrays)
        try:
            values[row.path] = TRANSFORMS[row.kind][0](arrays)
            received = values[row.path].shape
        except ValueError:
            pass  # arrays of another rank can't even be turned
        if received != wanted:
            problems.append(
                f"shape of {', '.join(row.keys)}: wanted {wanted} "
                f"for {row.path}, received {received}"
            )
    if problems:
        raise PortError("The weights don't fit:\n  " + "\n  ".join(problems))
    for path, value in values.items():
        find_variable(model, path).assign(value)


def export_weights(model, rows, values=None):
    """Turns a model's variables into a foreign state dict.

    Args:
        model: The model.
        rows: List of `Row` for this model and the target.
        values: Dict from path to array, instead of the variables' own values (say,
            their gradients).

    Returns:
        Dict from foreign key to NumPy array.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny")
    state = export_weights(model, keras_mae.weights.huggingface_rows(model))
    assert state["vit.embeddings.cls_token"].shape == (1, 1, 128)
    ```
    """
    state = {}
    for row in rows:
        if values is None:
            value = ops.convert_to_numpy(find_variable(model, row.path))
        else:
            value = np.asarray(values[row.path])
        arrays = TRANSFORMS[row.kind][1](value, model)
        state.update(zip(row.keys, arrays, strict=True))
    return state
