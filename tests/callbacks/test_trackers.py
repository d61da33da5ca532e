"""Weights & Biases and MLflow: what is logged, resuming, failures."""

import sys
import types

import keras
import numpy as np
import pytest

from keras_mae.callbacks import MLflowLogger, WandbLogger

CONFIG = {"blr": 1e-3, "model": None}
# of the real libraries, at the versions that the nightly test ran with
WANDB_INIT = {"project", "name", "dir", "config", "id", "resume"}


class StandIn(types.ModuleType):
    """Takes the calls that the loggers make, as the library does, and keeps them."""

    def __init__(self, name):
        super().__init__(name)
        self.runs, self.down = {}, False

    def open(self, known, **about):
        self.check()
        known = known or f"id{len(self.runs)}"
        self.current = self.runs.setdefault(known, {"rows": [], "params": []})
        self.current |= {"ended": None, **about}
        return known

    def add(self, values, step):
        self.check()
        self.current["rows"].append((step, values))

    def check(self):
        if self.down:
            raise RuntimeError("the server\nis down")  # neither raises OSError


def stand_in_wandb():
    library = StandIn("wandb")

    def init(**given):
        assert set(given) == WANDB_INIT and (given["id"] is None or given["resume"])
        found = library.open(given["id"], name=given["name"], params=given["config"])
        run = types.SimpleNamespace(id=found, log=lambda data, step: None)
        run.log = lambda data, step=None: library.add(data, step)
        run.finish = lambda exit_code=None: library.current.update(ended=exit_code)
        return run

    library.init = init
    return library


def stand_in_mlflow():
    library = StandIn("mlflow")

    def start_run(run_id=None, run_name=None):
        about = {} if run_name is None else {"name": run_name}
        found = library.open(run_id, uri=library.uri, **about)
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=found))

    library.set_tracking_uri = lambda uri: setattr(library, "uri", uri)
    library.start_run = start_run
    library.log_params = lambda params: library.current.update(params=params)
    library.log_metrics = lambda metrics, step=None: library.add(metrics, step)
    library.end_run = lambda status: library.current.update(ended=status)
    return library


KINDS = {
    "wandb": (WandbLogger, stand_in_wandb, 0, 1),
    "mlflow": (MLflowLogger, stand_in_mlflow, "FINISHED", "FAILED"),
}


@pytest.fixture(params=KINDS)
def tracked(request, monkeypatch, tmp_path):
    """A stand-in, what makes a logger, and how runs end: well, and not."""
    cls, make, *ends = KINDS[request.param]
    library = make()
    monkeypatch.setitem(sys.modules, request.param, library)
    folder = tmp_path / "run"
    folder.mkdir()
    return library, lambda place="here": cls(place, folder, CONFIG), ends


class Steps:
    """Stands for a model that is trained, two updates an epoch."""

    def __init__(self, step=0):
        self.optimizer = keras.optimizers.SGD()
        self.optimizer.iterations.assign(step)

    def fit(self, callback, first, last, end=True):
        callback.set_model(self)
        callback.on_train_begin()
        for epoch in range(first, last):
            self.optimizer.iterations.assign(2 * epoch + 2)
            callback.on_epoch_end(epoch, {"loss": np.float32(epoch), "val_loss": 0.5})
        if end:
            callback.on_train_end()


def test_epochs_and_config_are_logged(tracked):
    library, make, (well, _) = tracked
    Steps().fit(make(), 0, 2)
    ((name, run),) = library.runs.items()
    wanted = [(2, {"loss": 0, "val_loss": 0.5, "epoch": 1}),
              (4, {"loss": 1, "val_loss": 0.5, "epoch": 2})]  # fmt: skip
    assert run["rows"] == wanted and name == "id0"
    assert run["params"] == CONFIG and run["name"] == "run" and run["ended"] == well


def test_a_resumed_training_goes_on_with_its_run(tracked):
    library, make, _ = tracked
    Steps().fit(make(), 0, 1)
    Steps(2).fit(make(), 1, 2)
    assert [step for step, _ in library.runs["id0"]["rows"]] == [2, 4]
    Steps(4).fit(make("elsewhere"), 2, 3)  # where that run is unknown
    Steps().fit(make(), 0, 1)  # overwritten
    assert [len(run["rows"]) for run in library.runs.values()] == [2, 1, 1]


def test_failures_are_told_and_training_goes_on(tracked, capsys):
    library, make, (well, _) = tracked
    logger, model = make(), Steps()
    model.fit(logger, 0, 1, end=False)
    library.down = True
    logger.on_epoch_end(1, {"loss": 1.0})
    line = f"{library.__name__} failed: the server is down\n"
    assert capsys.readouterr().err == line
    library.down = False
    model.fit(logger, 1, 2)
    assert len(library.runs["id0"]["rows"]) == 2 and library.current["ended"] == well


def test_a_start_that_fails_is_an_error_unless_the_training_goes_on(tracked, capsys):
    library, make, _ = tracked
    library.down = True
    with pytest.raises(ValueError, match=f"{library.__name__} can't start: the serv"):
        Steps().fit(make(), 0, 1)
    logger, model = make(), Steps(2)
    model.fit(logger, 1, 1, end=False)
    assert "the server is down" in capsys.readouterr().err
    library.down = False
    logger.on_epoch_end(1, {"loss": 1.0})
    assert len(library.current["rows"]) == 1


def test_a_run_started_before_fit_is_not_started_again(tracked):
    library, make, _ = tracked
    logger = make()
    logger.start()
    Steps().fit(logger, 0, 1)
    assert list(library.runs) == ["id0"] and len(library.runs["id0"]["rows"]) == 1


def test_a_training_that_fails_is_told_once(tracked):
    library, make, (_, badly) = tracked
    logger = make()
    Steps().fit(logger, 0, 1, end=False)
    logger.close(failed=True)
    assert library.current["ended"] == badly
    logger.close()
    assert library.current["ended"] == badly


@pytest.mark.parametrize("name", KINDS)
def test_a_missing_library_is_told(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=rf"needs {name}: pip install .*\[trackers\]"):
        KINDS[name][0]("here", tmp_path)


@pytest.mark.nightly
def test_wandb_itself_writes_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    Steps().fit(WandbLogger("project", tmp_path, CONFIG), 0, 2)
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert path.stem.removeprefix("run-") in (tmp_path / "wandb-run.txt").read_text()
    assert wandb.run is None
    wandb.teardown()  # waits for the process that writes
    assert b"val_loss" in path.read_bytes()


@pytest.mark.nightly
def test_mlflow_itself_keeps_a_resumed_run_together(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for first in (0, 1):
        Steps(2 * first).fit(MLflowLogger(uri, tmp_path, CONFIG), first, first + 1)
    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs(["0"])
    assert run.info.status == "FINISHED" and run.data.params["blr"] == "0.001"
    rows = client.get_metric_history(run.info.run_id, "loss")
    assert [(row.step, row.value) for row in rows] == [(2, 0), (4, 1)]
