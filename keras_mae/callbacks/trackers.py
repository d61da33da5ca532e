"""Callbacks that log a run to Weights & Biases or MLflow."""

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_mae.callbacks.iterations import optimizer_iterations
from keras_mae.utils.files import atomic_write
from keras_mae.utils.typing import Logs, PathLike


class _Tracker(keras.callbacks.Callback):
    """Base class: logs each epoch's values; only a failed start ends training."""

    package: str

    def __init__(
        self, place: str, folder: PathLike, config: Mapping[str, Any] | None
    ) -> None:
        super().__init__()
        self.place = place
        # keeps the tracked run's id, so that a resumed training goes on with it
        self.folder = Path(folder)
        self.config = dict(config or {})
        self._open = False
        try:
            self._library: Any = importlib.import_module(self.package)
        except ImportError as error:
            raise ValueError(
                f"{type(self).__name__} needs {self.package}: pip install "
                f"'keras-mae[trackers]' ({error})"
            ) from error

    def start(self) -> None:
        """Starts the tracked run of a new training, before `fit` does.

        Raises:
            ValueError: If it can't be started.
        """
        try:
            self._begin(fresh=True)
        except Exception as error:  # each library has errors of its own
            raise ValueError(f"{self.package} can't start: {error}") from error

    def on_train_begin(self, logs: Logs = None) -> None:
        if self._open:
            return
        if optimizer_iterations(self.model) == 0:
            self.start()
            return
        try:
            self._begin(fresh=False)
        except Exception as error:
            self._print(error)

    def on_epoch_end(self, epoch: int, logs: Logs = None) -> None:
        values = {name: float(np.mean(value)) for name, value in (logs or {}).items()}
        try:
            if not self._open:
                self._begin(fresh=False)
            step = optimizer_iterations(self.model)
            self._log({**values, "epoch": epoch + 1.0}, step)
        except Exception as error:
            self._print(error)

    def on_train_end(self, logs: Logs = None) -> None:
        self.close()

    def close(self, failed: bool = False) -> None:
        """Ends the tracked run, if there is one, as finished or failed."""
        if self._open:
            self._open = False
            try:
                self._end(failed)
            except Exception as error:
                self._print(error)

    def _begin(self, fresh):
        """Starts a tracked run, or goes on with the one of this folder."""
        path = self.folder / f"{self.package}-run.txt"
        # two lines: where it is tracked, and the tracked run's id
        place, known = self.place, None
        if not fresh and path.exists():
            place, _, known = path.read_text().strip().partition("\n")
        found = self._start(known if place == self.place else None)
        self._open = True
        with atomic_write(path) as part:
            part.write_text(f"{self.place}\n{found}\n")

    def _print(self, error):
        line = " ".join(str(error).split())
        print(f"{self.package} failed: {line}", file=sys.stderr, flush=True)

    def _start(self, known: str | None) -> str:
        """Starts a run, or goes on with a known one; returns its id."""
        raise NotImplementedError

    def _log(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def _end(self, failed: bool) -> None:
        raise NotImplementedError


class WandbLogger(_Tracker):
    """Logs the values of each epoch, and a configuration, to Weights & Biases.

    Steps are optimizer iterations. A resumed training goes on with its tracked run.
    What fails after the start is printed to standard error, and training goes on.

    Args:
        project: Str, the project's name.
        folder: Path of an existing folder, for wandb's files and the tracked run's id.
        config: Dict of what the run was started with.

    Raises:
        ValueError: If wandb is not installed; from `fit`, if a run can't be started.

    Example:

    ```python
    try:
        callback = WandbLogger("my-project", "run", {"batch_size": 64})
    except ValueError:
        print("pip install wandb")
    ```
    """

    package = "wandb"

    def __init__(
        self,
        project: str,
        folder: PathLike,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(project, folder, config)

    def _start(self, known):
        self._run = self._library.init(
            project=self.place,
            name=self.folder.resolve().name,
            dir=str(self.folder),
            config=self.config,
            id=known,
            resume=None if known is None else "allow",
        )
        return self._run.id

    def _log(self, values, step):
        self._run.log(values, step=step)

    def _end(self, failed):
        self._run.finish(exit_code=int(failed))


class MLflowLogger(_Tracker):
    """Logs the values of each epoch, and a configuration, to MLflow.

    Steps are optimizer iterations. A resumed training goes on with its tracked run.
    What fails after the start is printed to standard error, and training goes on.
    MLflow reads the experiment's name from `MLFLOW_EXPERIMENT_NAME`.

    Args:
        uri: Str, the tracking URI: a server's address or a local store.
        folder: Path of an existing folder, for the tracked run's id.
        config: Dict of what the run was started with.

    Raises:
        ValueError: If MLflow is not installed; from `fit`, if a run can't be started.

    Example:

    ```python
    try:
        callback = MLflowLogger("http://localhost:5000", "run", {"batch_size": 64})
    except ValueError:
        print("pip install mlflow")
    ```
    """

    package = "mlflow"

    def __init__(
        self,
        uri: str,
        folder: PathLike,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(uri, folder, config)

    def _start(self, known):
        self._library.set_tracking_uri(self.place)
        name = None if known else self.folder.resolve().name
        run = self._library.start_run(run_id=known, run_name=name)
        if known is None:
            self._library.log_params(self.config)
        return run.info.run_id

    def _log(self, values, step):
        self._library.log_metrics(values, step=step)

    def _end(self, failed):
        self._library.end_run("FAILED" if failed else "FINISHED")
