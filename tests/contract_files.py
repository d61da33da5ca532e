"""What files give back in another process.

Run: python -m tests.contract_files FOLDER
"""

import json
import pathlib
import sys

import keras
import numpy as np
from keras import tree

# a file must need no other import
import keras_mae  # noqa: F401


def array(tensor):
    """Returns a tensor as a float32 array, whatever its dtype and backend."""
    return keras.ops.convert_to_numpy(tensor).astype("float32")


def recall(model, file):
    """Lists what a model was saved for.

    Args:
        model: The model that was saved as `file`, or loaded from it.
        file: Path; beside it lie the inputs, `.npz`, and a call's options, `.json`.

    Returns:
        A tuple: a dict of configs, and a list of arrays: what a call returns, and the
        state of the optimizer.
    """
    inputs = dict(np.load(file.with_suffix(".npz")))
    options = json.loads(file.with_suffix(".json").read_text())
    if options is None:  # a functional model
        outputs = model(inputs)
    else:
        outputs = model(inputs.pop(next(iter(inputs))), **inputs, **options)
    configs = {"model": model.get_config()}
    tensors = tree.flatten(outputs)
    if model.compiled:
        configs["optimizer"] = model.optimizer.get_config()
        tensors += model.optimizer.variables
    return _plain(configs), [array(tensor) for tensor in tensors]


def _plain(configs):
    """Turns configs into what JSON gives back, without Keras's notes on sharing."""

    def forget(item):
        item.pop("shared_object_id", None)
        return item

    return json.loads(json.dumps(configs), object_hook=forget)


def results(file):
    """Reads what another process wrote of `recall`."""
    configs = json.loads(file.with_suffix(".configs").read_text())
    return configs, list(np.load(file.with_suffix(".answers.npz")).values())


def main(folder):
    for file in pathlib.Path(folder).glob("*.keras"):
        configs, arrays = recall(keras.models.load_model(file), file)
        file.with_suffix(".configs").write_text(json.dumps(configs))
        np.savez(file.with_suffix(".answers.npz"), *arrays)


if __name__ == "__main__":
    main(sys.argv[1])
