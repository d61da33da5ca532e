"""Model versions: folders, version policies, labels and hot reload.

A new version is available before an old one is unloaded, and one that fails to load
replaces nothing. A version is unloaded when its last request has ended.
"""

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
from mae_server import errors
from mae_server.bundle import LOAD_DEFAULTS, Bundle
from mae_server.errors import LoadError, RequestError, invalid

# versions are int64 in the protocol
_MOST_VERSION = 2**63 - 1


class ModelConfig(NamedTuple):
    """How a model is served: its folder, version policy and labels."""

    name: str
    base_path: str
    versions: tuple | None = None  # all for `()`, the newest `latest` ones for `None`
    latest: int = 1
    labels: Mapping[str, int] = MappingProxyType({})  # from label to version

    def aspired(self):
        """Maps selected versions to folders, as file_system_storage_path_source.cc."""
        with contextlib.suppress(OSError):
            names = sorted(path.name for path in Path(self.base_path).iterdir())
            if self.versions == ():  # here the first of them, else the last
                names.reverse()
            # 007 is a version; of several with the same number one is served
            found = {int(name): name for name in names if _is_version(name)}
            selected = sorted(found)[-self.latest :]
            if self.versions is not None:
                selected = [n for n in found if n in (self.versions or found)]
            return {number: found[number] for number in selected}
        return None  # the folder can't be read


def _is_version(name):
    # absl::SimpleAtoi, ASCII only
    number = re.fullmatch(r"\s*[+-]?0*(\d{1,19})\s*", name, re.ASCII)
    return number is not None and -_MOST_VERSION - 1 <= int(name) <= _MOST_VERSION


class Status(NamedTuple):
    """A version's number and state; code and message of an error that ended it."""

    version: int
    state: str
    code: str
    error: str


class Version:
    """A version of a model: `START`, `LOADING`, `AVAILABLE`, `UNLOADING` or `END`."""

    def __init__(self, path):
        self.path = Path(path)
        self.state = "START"
        self.code, self.error = "OK", ""  # why it was not loaded
        self.bundle = None
        self.users = 0  # requests that hold it


class Models:
    """Loads and unloads versions, following their folders."""

    def __init__(self, configs, labels_may_wait=False, load_options=LOAD_DEFAULTS):
        # a new label may name a version that is not there yet
        self._labels_may_wait = labels_may_wait
        self._load_options = load_options
        self._changed = threading.Condition()
        self._polling = threading.Lock()
        self._stopped = threading.Event()
        self._configs = {}
        self._labels = {}  # model -> label -> version
        self._versions = {}
        self._broken = {}  # path -> its files when it failed to load
        try:
            self.configure(configs)
        except RequestError as error:
            self.close()
            raise ValueError(str(error)) from error

    def configure(self, configs):
        """Replaces the configuration, as TF Serving does (`server_core.cc`)."""
        names = [config.name for config in configs]
        for name in names:
            if not name:
                raise invalid(errors.NO_MODEL_NAME)
            if names.count(name) > 1:
                raise invalid(errors.NAME_TWICE, name=name)
        with self._polling:
            labels = {config.name: self._checked_labels(config) for config in configs}
            new = [config for config in configs if config.name not in self._configs]
            # nothing is refused any more: a model that can't be loaded stays configured
            with self._changed:
                self._configs = {config.name: config for config in configs}
                self._labels = labels
            try:
                self._load_aspired()
            finally:
                self._unload_others()
            missing = [row for config in new for row in self._not_loaded(config)]
        if missing:
            raise errors.not_available(missing)

    def names(self):
        """Returns the names of the models that are configured."""
        return set(self._configs)

    def poll(self):
        """Reads the folders once: loads new versions, unloads old ones."""
        with self._polling:
            self._load_aspired()
            self._unload_others()

    def keep_polling(self, seconds, poll=None):
        """Calls `poll`, by default that of folders, every `seconds` until `close`."""
        poll = poll or self.poll

        def loop():
            while not self._stopped.wait(seconds):
                try:
                    poll()
                except Exception:  # the next poll may succeed
                    traceback.print_exc()

        thread = threading.Thread(target=loop, name="polling", daemon=True)
        thread.start()
        return thread

    @contextlib.contextmanager
    def use(self, name, version=None, label=None):
        """Yields a version's number and `Bundle`, kept loaded until the block ends."""
        if not name:
            raise invalid(errors.NO_MODEL_NAME)
        with self._changed:
            if label:
                version = self._labelled(name, label)
            served = {
                number: held
                for number, held in self._versions.get(name, {}).items()
                if held.state == "AVAILABLE"
            }
            number = max(served, default=None) if version is None else version
            if number not in served:
                raise errors.model_not_found(name, version)
            held = served[number]
            held.users += 1
        try:
            yield number, held.bundle
        finally:
            with self._changed:
                held.users -= 1
                self._changed.notify_all()

    def status(self, name, version=None):
        """Returns a `Status` of each version seen, newest first."""
        with self._changed:
            known = self._versions.get(name, {})
            if version is not None:
                if version not in known:
                    raise errors.version_not_found(name, version)
                known = {version: known[version]}
            if not known:
                raise errors.no_versions(name)
            rows = [
                Status(number, held.state, held.code, held.error)
                for number, held in known.items()
            ]
            return sorted(rows, reverse=True)

    def close(self, seconds=1.0):
        """Unloads all models once unused; `False` if a load goes on for `seconds`."""
        self._stopped.set()
        # a load can't be stopped
        while not self._polling.acquire(timeout=seconds):
            # one that unloads waits for requests, too
            if not self._is_in_use():
                return False
        try:
            self._configs = {}
            self._unload_others()
        finally:
            self._polling.release()
        return True

    def _is_in_use(self):
        with self._changed:
            models = list(self._versions.values())
            return any(held.users for known in models for held in list(known.values()))

    def _labelled(self, name, label):
        labels = self._labels.get(name, {})
        if label not in labels:
            raise invalid(errors.LABEL_NOT_FOUND, label=label)
        return labels[label]

    def _checked_labels(self, config):
        """Returns a configuration's labels; raises if a version is not available."""
        now = self._labels.get(config.name, {})
        known = self._versions.get(config.name, {})
        for label, number in config.labels.items():
            # server_core.cc, UpdateModelVersionLabelMap
            may_wait = self._labels_may_wait and now.get(label, number) == number
            available = number in known and known[number].state == "AVAILABLE"
            if not available and not may_wait:
                raise errors.label_of_unavailable_version(config.name, number)
        return dict(config.labels)

    def _load_aspired(self):
        """Loads versions that the policies select and that are not loaded."""
        for name, config in self._configs.items():
            known = self._versions.setdefault(name, {})
            for number, folder in sorted((config.aspired() or {}).items()):
                held = known.get(number)
                path = Path(config.base_path, folder)
                # aspired_versions_manager.cc, SetAspiredVersions: by number alone
                there = held is not None and held.state == "AVAILABLE"
                if there or self._broken.get(path, "sound") == _stamp(path):
                    continue
                self._load(known, number, Version(path))

    def _load(self, known, number, version):
        """Loads a version that is not available."""
        with self._changed:
            known[number] = version
        version.state = "LOADING"
        stamp = _stamp(version.path)
        try:
            version.bundle = Bundle(version.path, self._load_options)
        except LoadError as error:
            version.code, version.error = error.code, str(error)
            version.state = "END"
            self._broken[version.path] = stamp
            print(f"Cannot load SavedModel {version.path}: {error}", flush=True)
            return
        self._broken.pop(version.path, None)
        with self._changed:
            version.state = "AVAILABLE"
        print(f"Serving {version.path}", flush=True)

    def _not_loaded(self, config):
        """Returns rows for `not_available` if no version of a model is there."""
        known = self._versions.get(config.name, {})
        if any(held.state == "AVAILABLE" for held in known.values()):
            return []
        rows = [
            (config.name, number, held.code, held.error)
            for number, held in known.items()
        ]
        # here TF Serving waits for one, for any time
        text = f"{config.base_path} has no folder named by a version number"
        return rows or [(config.name, 0, "NOT_FOUND", text)]

    def _unload_others(self):
        """Unloads versions, as TF Serving's availability_preserving_policy.cc."""
        for name, known in self._versions.items():
            config = self._configs.get(name)
            aspired = {} if config is None else config.aspired()
            if aspired is None:
                continue
            available = {n for n, held in known.items() if held.state == "AVAILABLE"}
            others = sorted(available - set(aspired))
            # none of those selected is there yet: the newest of the others stays
            if aspired and not available & set(aspired):
                others = others[:-1]
            for number in others:
                self._unload(known[number])

    def _unload(self, held):
        if held.bundle is None:
            return
        with self._changed:
            held.state = "UNLOADING"
            self._changed.wait_for(lambda: held.users == 0)
        held.bundle.close()
        held.bundle, held.state = None, "END"
        gc.collect()  # graphs are reference cycles
        trim_malloc()


def _stamp(path):
    """Times and sizes of a SavedModel's files: if they change, it is tried again."""
    # all files: one seen while it is copied is complete when the last has come
    with contextlib.suppress(OSError):
        stats = {str(file): file.stat() for file in path.rglob("*")}
        return {file: (stat.st_mtime_ns, stat.st_size) for file, stat in stats.items()}
    return None
