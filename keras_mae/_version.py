"""The version, in one place: setup.cfg reads it from here, without importing."""

__version__ = "0.2.0"
