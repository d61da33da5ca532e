"""--callback=module:factory: callbacks that users write, and what they get wrong."""

import types

import keras
import pytest

from keras_mae.runs.own_callbacks import load_callbacks

MODULE = """
import keras

class Mine(keras.callbacks.Callback):
    def __init__(self, config):
        super().__init__()
        self.epochs = config.epochs

def stop(config):
    return keras.callbacks.EarlyStopping(monitor=config.monitor)

def nothing(config):
    pass
"""
CONFIG = types.SimpleNamespace(epochs=7, monitor="val_loss")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "callbacks_of_mine.py").write_text(MODULE)
    (tmp_path / "callbacks_that_break.py").write_text("import no_such_library")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("/no/such")  # and sys.path is restored


def test_factories_get_the_flags():
    names = "callbacks_of_mine:Mine, callbacks_of_mine:stop"
    mine, stop = load_callbacks(names, CONFIG)
    assert mine.epochs == 7 and stop.monitor == "val_loss"
    assert isinstance(stop, keras.callbacks.EarlyStopping)
    assert load_callbacks(None, CONFIG) == []


@pytest.mark.parametrize(
    "names, message",
    [
        ("callbacks_of_mine", "must be module:factory.* Received: 'callbacks_of_mine'"),
        ("callbacks_of_mine:Mine,", "must be module:factory.* Received: ''"),
        ("no_such_module:f", "no_such_module:f can't be made: ModuleNotFoundError"),
        ("callbacks_that_break:f", "No module named 'no_such_library'"),
        ("callbacks_of_mine:f", "AttributeError: module .* has no attribute 'f'"),
        ("callbacks_of_mine:nothing", r"keras.callbacks.Callback. Received: NoneType"),
        ("builtins:int", "TypeError: int"),
    ],
)
def test_what_is_no_callback_is_refused(names, message):
    with pytest.raises(ValueError, match=message):
        load_callbacks(names, CONFIG)
