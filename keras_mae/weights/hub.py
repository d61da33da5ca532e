"""Finds files in a folder or a Hugging Face hub repository."""

import json
import os
import re
from pathlib import Path
from typing import Any

from keras_mae.utils.typing import PathLike
from keras_mae.weights.checkpoint import PortError

CONFIG_FILE = "config.json"  # of a model
PROCESSOR_FILE = "preprocessor_config.json"  # of its images
# endings of files of weights
WEIGHT_ENDINGS = (".pth", ".pt", ".bin", ".ckpt", ".safetensors", ".h5")
# owner/name, as the hub spells it
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# an index of a thousand shards takes a few megabytes; deeper nesting can't be printed
_LONGEST_JSON, _DEEPEST_JSON = 2**25, 50
_FILE_ENDINGS = (*WEIGHT_ENDINGS, ".json", ".keras", ".tar")


class HubUnavailableError(PortError):
    """A file is not cached, and the hub is offline or can't be reached."""


def hub_errors() -> tuple[type[Exception], ...]:
    """Returns what the hub's library raises: its own errors, and the connection's."""
    from huggingface_hub import errors

    return OSError, ValueError, errors.HTTPError


class Location:
    """A folder, that of a file, or a hub repository; files are found by name."""

    def __init__(
        self,
        source: PathLike,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: PathLike | None = None,
        local_files_only: bool = False,
        subfolder: str | None = None,
    ) -> None:
        self.source = os.path.expanduser(str(source))
        if os.path.isfile(self.source):
            self.source = os.path.dirname(self.source) or os.curdir
        self.is_folder = os.path.isdir(self.source)
        if not self.is_folder and (
            self.source.endswith(_FILE_ENDINGS) or not _HUB_ID.fullmatch(self.source)
        ):
            raise PortError(
                "source must be a file, a folder, or a hub id such as "
                f"facebook/vit-mae-base. Received: {self.source}, which does not exist"
            )
        self.subfolder = subfolder
        self.options = {
            "revision": revision,
            "token": token,
            "cache_dir": cache_dir,
            "local_files_only": local_files_only,
        }

    def find(self, name: str) -> Path | None:
        """Finds a file, or downloads it; `None` where the source has no such file."""
        if self.is_folder:
            path = Path(self.source, self.subfolder or "", name)
            return path if os.path.isfile(path) else None
        import huggingface_hub
        from huggingface_hub import errors

        try:
            return Path(
                huggingface_hub.hf_hub_download(
                    self.source, name, subfolder=self.subfolder, **self.options
                )
            )
        except errors.LocalEntryNotFoundError as error:
            # later look-ups use the cache alone, without waiting for the hub
            self.options["local_files_only"] = True
            if self._is_known_to_be_absent(name):
                return None
            raise HubUnavailableError(
                f"There is no folder {self.source}, and {name} of the hub repository "
                f"is not cached; the hub is offline or can't be reached: {error}"
            ) from error
        except errors.EntryNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise PortError(
                f"There is no folder {self.source}, and {name} of the hub repository "
                "can't be downloaded (no such repository or revision, or a token is "
                f"needed): {error}"
            ) from error
        except errors.HTTPError as error:  # the connection's, which are no OSError
            self.options["local_files_only"] = True
            raise HubUnavailableError(
                f"There is no folder {self.source}, and {name} of the hub repository "
                f"can't be downloaded; the hub can't be reached: {error!r}"
            ) from error

    def _is_known_to_be_absent(self, name):
        """Whether the cache records that the repository has no such file."""
        import huggingface_hub

        names = ("cache_dir", "revision")
        path = f"{self.subfolder}/{name}" if self.subfolder else name
        found = huggingface_hub.try_to_load_from_cache(
            self.source, path, **{key: self.options[key] for key in names}
        )
        return found is not None and not isinstance(found, str)

    def list_files(self) -> list[str]:
        """Lists the names of files in the folder or repository, sorted."""
        if self.is_folder:
            folder = Path(self.source, self.subfolder or "")
            found = folder.iterdir() if folder.is_dir() else ()
            return sorted(path.name for path in found if path.is_file())
        start = f"{self.subfolder}/" if self.subfolder else ""
        names = (
            path.removeprefix(start)
            for path in self._list_repository()
            if path.startswith(start)
        )
        return sorted(name for name in names if "/" not in name)

    def _list_repository(self):
        """Lists the paths in a repository; offline those that are cached."""
        import huggingface_hub

        options = dict(self.options)
        token = options.pop("token")
        if not options.pop("local_files_only"):
            try:
                api = huggingface_hub.HfApi(token=token)
                return api.list_repo_files(self.source, revision=options["revision"])
            except hub_errors():
                pass  # the hub can't be reached
        try:
            snapshot = huggingface_hub.snapshot_download(
                self.source, local_files_only=True, **options
            )
        except (OSError, ValueError):
            return []
        found = Path(snapshot).rglob("*")
        return [str(p.relative_to(snapshot)) for p in found if p.is_file()]

    def require(self, name: str) -> Path:
        """Finds a file that must be there."""
        path = self.find(name)
        if path is None:
            raise PortError(f"{self.source} has no {name}")
        return path


def read_json(path: PathLike) -> dict[str, Any]:
    """Reads a JSON object."""
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(_LONGEST_JSON + 1)
        if len(text) > _LONGEST_JSON:
            raise ValueError(f"longer than {_LONGEST_JSON} characters")
        content = json.loads(text)
        if _is_deeper(content, _DEEPEST_JSON):
            raise ValueError(f"nested deeper than {_DEEPEST_JSON} levels")
    except (OSError, ValueError, RecursionError) as error:
        raise PortError(f"{path} can't be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise PortError(f"{path} must be a JSON object. Received: {content!r:.60}")
    return content


def _is_deeper(content, levels):
    """Whether lists and dicts are nested deeper than so many levels."""
    level = [content]
    for _ in range(levels):
        holders = [item for item in level if isinstance(item, (dict, list))]
        values = [x.values() if isinstance(x, dict) else x for x in holders]
        level = [item for inside in values for item in inside]
    return any(isinstance(item, (dict, list)) for item in level)
