"""Imports timm where torchvision is absent, or does not fit the installed PyTorch."""

import contextlib
import importlib.abc
import importlib.machinery
import sys


class _Anything(type):
    """A class whose every attribute is there: timm only looks them up."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        def stand_in(name):
            if name.startswith("__"):
                raise AttributeError(name)
            return _Anything(name, (), {})

        module.__getattr__ = stand_in


@contextlib.contextmanager
def without_torchvision():
    """Lets imports of torchvision give stand-ins."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        # others ask whether torchvision is installed
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]


def import_timm():
    """Returns the module `timm`; its Vision Transformers need no torchvision."""
    with without_torchvision():
        import timm
    return timm
