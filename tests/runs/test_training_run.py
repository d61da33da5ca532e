"""Training runs: calls of `fit` that make up a resumed run."""

import types
from unittest import mock

from keras_mae.runs.training_run import Training


class Stopped:
    """Stands for a model that a callback stops in the first call of `fit`."""

    name, trainable_weights, stop_training = "model", (), False

    def __init__(self):
        self.epochs = []

    def count_params(self):
        return 0

    def fit(self, *args, initial_epoch, **kwargs):
        self.epochs.append(initial_epoch)
        self.stop_training = True


def test_a_callback_stops_a_resumed_run_in_its_first_epoch(monkeypatch):
    stubs = {
        "_saving": mock.Mock(),
        "_callbacks": [],
        "_callback_list": [],
        "_distribute": None,
        "_data_sizes": "",
        "_start": 6,
    }
    for name, value in stubs.items():
        monkeypatch.setattr(Training, name, lambda *_, value=value: value)
    training = object.__new__(Training)
    training.config = types.SimpleNamespace(output="run", epochs=9)
    training.strategy = types.SimpleNamespace(num_replicas_in_sync=1)
    training.steps, training._trackers = 4, []
    training.source, training.read_by_callbacks = None, []
    model = Stopped()
    training.fit(model, None, None)
    # else the epochs after the interrupted one would follow
    assert model.epochs == [1]
