"""Which versions of which models are loaded: folders, policies, labels, hot reload."""

import contextlib
import gc
import re
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from keras_mae.utils.malloc import trim_malloc
from mae_server.bundle import Bundle
from mae_server.errors import RequestError, invalid


class ModelConfig(NamedTuple):
    """How a model is served.

    Args:
        name: Str, the model's name in requests.
        base_path: Path of the folder that holds the numbered versions.
        versions: Tuple of the versions to serve; all for `()`, the newest `latest`
            for `None`.
        latest: Int, how many of the newest versions to serve.
        labels: Dict from label to version.

    Example:

    ```python
    config = ModelConfig("mae", "models/mae", versions=(1, 2), labels={"stable": 1})
    ```
    """

    name: str
    base_path: str
    versions: tuple | None = None
    latest: int = 1
    labels: Mapping[str, int] = MappingProxyType({})

    def aspired(self):
        """Lists the versions in the folder that the policy wants, as a set of ints."""
        with contextlib.suppress(OSError):
            folders = [path.name for path in Path(self.base_path).glob("*/")]
            # ASCII digits: other digits are numbers to Python, not to TF Serving
            found = sorted(int(n) for n in folders if re.fullmatch("0|[1-9][0-9]*", n))
            if self.versions is None:
                return set(found[-self.latest :])
            return set(found) & set(self.versions or found)
        return set()


class Version:
    """A version of a model on its way from START to END.

    Args:
        path: Path of its SavedModel.

    Attributes:
        state: `"START"`, `"LOADING"`, `"AVAILABLE"`, `"UNLOADING"` or `"END"`.
        error: Str, why it could not be loaded; `""` for a sound one.
        bundle: The `Bundle`, while there is one.
        users: Int, the requests that hold it.

    Example:

    ```python
    assert Version("models/mae/1").state == "START"
    ```
    """

    def __init__(self, path):
        self.path = Path(path)
        self.state = "START"
        self.error = ""
        self.bundle = None
        self.users = 0


class Models:
    """Loads what the configurations ask for, and follows the folders.

    A new version answers before an old one is unloaded, and one that can't be loaded
    leaves the old one where it is. An unloaded version goes when its last request has.

    Args:
        configs: Sequence of `ModelConfig`.

    Raises:
        ValueError: If a model has no version that can be served, or a label none.

    Example:

    ```python
    try:
        Models([ModelConfig("mae", "nowhere")])
    except ValueError as error:
        assert "nowhere must hold a SavedModel" in str(error)
    ```
    """

    def __init__(self, configs):
        self._changed = threading.Condition()
        self._polling = threading.Lock()
        self._stopped = threading.Event()
        self._configs = {}
        self._versions = {}
        self._broken = {}  # path -> what the files were when they could not be loaded
        try:
            self.configure(configs)
        except RequestError as error:
            raise ValueError(str(error)) from error

    def configure(self, configs):
        """Serves other models from now on, or raises and stays as it was.

        Args:
            configs: Sequence of `ModelConfig`.

        Raises:
            RequestError: If a model can't be served, or a label names a version that
                isn't.
        """
        names = [config.name for config in configs]
        for name in names:
            if not name or names.count(name) > 1:
                raise invalid(f"Illegal to list model {name!r} multiple times or empty")
        with self._polling:
            old, self._configs = self._configs, {c.name: c for c in configs}
            try:
                self._load_aspired()
                for config in configs:
                    self._check(config)
            except RequestError:
                self._configs = old
                self._load_aspired()  # what a refused one took the place of
                raise
            finally:
                self._unload_others()

    def poll(self):
        """Looks at the folders once: loads what is new, unloads what is superseded."""
        with self._polling:
            self._load_aspired()
            self._unload_others()

    def keep_polling(self, seconds, first=lambda: None):
        """Polls until `close`, in a thread of its own.

        Args:
            seconds: Float, the time between two polls.
            first: Function that is called before each.

        Returns:
            The started `threading.Thread`.
        """

        def loop():
            while not self._stopped.wait(seconds):
                try:
                    first()
                    self.poll()
                except Exception:  # whatever it was: the next poll may find it gone
                    traceback.print_exc()

        thread = threading.Thread(target=loop, name="polling", daemon=True)
        thread.start()
        return thread

    @contextlib.contextmanager
    def use(self, name, version=None, label=None):
        """Holds a version for the time of a request.

        Args:
            name: Str, a model's name.
            version: Int, or `None` for the newest one available.
            label: Str, instead of a version.

        Yields:
            A tuple: the version, int, and its `Bundle`.

        Raises:
            RequestError: If there is no such model, version or label.
        """
        if not name:
            raise invalid("ModelSpec has no name specified.")
        with self._changed:
            if label:
                version = self._labelled(name, label)
            wanted = f"Latest({name})" if version is None else _specific(name, version)
            served = {
                number: held
                for number, held in self._versions.get(name, {}).items()
                if held.state == "AVAILABLE"
            }
            number = max(served, default=None) if version is None else version
            if number not in served:
                raise RequestError(
                    "NOT_FOUND", f"Servable not found for request: {wanted}"
                )
            held = served[number]
            held.users += 1
        try:
            yield number, held.bundle
        finally:
            with self._changed:
                held.users -= 1
                self._changed.notify_all()

    def status(self, name, version=None, label=None):
        """Lists the states of a model's versions, ended ones included.

        Args:
            name: Str, a model's name.
            version: Int, to ask for one only.
            label: Str, instead of a version.

        Returns:
            A list of tuples: version, int; state and error, strs. Newest first.

        Raises:
            RequestError: If there is none.
        """
        with self._changed:
            if label:
                version = self._labelled(name, label)
            known = self._versions.get(name, {})
            if version is not None:
                if version not in known:
                    raise RequestError(
                        "NOT_FOUND", f"Could not find version {version} of model {name}"
                    )
                known = {version: known[version]}
            if not known:
                raise RequestError(
                    "NOT_FOUND", f"Could not find any versions of model {name}"
                )
            rows = [(number, held.state, held.error) for number, held in known.items()]
            return sorted(rows, reverse=True)

    def close(self):
        """Stops polling and frees every model, when the requests in hand have ended."""
        self._stopped.set()
        with self._polling:
            self._configs = {}
            self._unload_others()

    def _labelled(self, name, label):
        config = self._configs.get(name)
        if config is None or label not in config.labels:
            raise invalid(f"Unrecognized servable version label: {label}")
        return config.labels[label]

    def _load_aspired(self):
        """Loads what is asked for and not there."""
        for name, config in self._configs.items():
            known = self._versions.setdefault(name, {})
            for number in sorted(config.aspired()):
                held = known.get(number)
                path = Path(config.base_path, str(number))
                there = held and held.state == "AVAILABLE" and held.path == path
                if there or self._broken.get(path, "sound") == _stamp(path):
                    continue
                self._load(known, number, Version(path))

    def _load(self, known, number, version):
        """Loads a version into its place; what answered there is unloaded after."""
        held = known.get(number)
        answering = held is not None and held.state == "AVAILABLE"
        if not answering:
            with self._changed:
                known[number] = version
        version.state = "LOADING"
        stamp = _stamp(version.path)
        try:
            version.bundle = Bundle(version.path)
        except ValueError as error:
            version.error, version.state = str(error), "END"
            self._broken[version.path] = stamp
            print(f"Not served: {error}", flush=True)
            return
        self._broken.pop(version.path, None)
        with self._changed:
            version.state = "AVAILABLE"
            known[number] = version
        print(f"Serving {version.path}", flush=True)
        if answering:
            self._unload(held)

    def _check(self, config):
        """Raises if a model just configured can't answer."""
        known = self._versions[config.name]
        folder = Path(config.base_path)
        served = [
            number
            for number, held in known.items()
            if held.state == "AVAILABLE" and held.path.parent == folder
        ]
        if not served:
            paths = [folder / str(number) for number in sorted(config.aspired())]
            raise invalid(
                f"{folder} must hold a SavedModel in a folder named by a number. "
                f"Received: {' and '.join(map(str, paths)) or 'no such folder'}"
            )
        for label, number in config.labels.items():
            if number not in served:
                raise RequestError(
                    "FAILED_PRECONDITION",
                    f"Request to assign label to version {number} of model "
                    f"{config.name}, which is not currently available for inference "
                    f"(label {label})",
                )

    def _unload_others(self):
        """Unloads versions that nobody asks for and that others stand in for."""
        for name, known in self._versions.items():
            config = self._configs.get(name)
            aspired = set() if config is None else config.aspired()
            answering = {n for n, held in known.items() if held.state == "AVAILABLE"}
            if config is not None and not answering & aspired:
                continue
            for number in answering - aspired:
                self._unload(known[number])

    def _unload(self, held):
        if held.bundle is None:
            return
        with self._changed:
            held.state = "UNLOADING"
            self._changed.wait_for(lambda: held.users == 0)
        held.bundle.close()
        held.bundle, held.state = None, "END"
        gc.collect()  # graphs hold themselves
        trim_malloc()


def _stamp(path):
    """Returns what changes when a SavedModel does, to try a broken one again."""
    # every file: one that was seen while it was copied is whole when the last has come
    with contextlib.suppress(OSError):
        stats = {str(file): file.stat() for file in path.rglob("*")}
        return {file: (stat.st_mtime_ns, stat.st_size) for file, stat in stats.items()}
    return None


def _specific(name, version):
    return f"Specific({name}, {version})"
