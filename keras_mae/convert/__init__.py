"""Conversion between libraries: the command, its check, and KerasHub's backbone."""
