"""Frozen parts of a layer, which survive saving, cloning and copying."""

from collections.abc import Iterator, Sequence
from typing import Any

import keras


class KeepsFrozenParts:
    """Mixin: `part.trainable = False` is kept in the configuration.

    A functional Keras model keeps it layer by layer. Our models make their layers from
    sizes, so the configuration lists which of them are frozen.

    Args:
        frozen: Names of frozen parts, as in `"blocks.0.attention"`.
        **kwargs: Those of the next class.
    """

    _frozen: tuple[str, ...] = ()

    def __init__(self, *args: Any, frozen: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._frozen = tuple(frozen)

    def freeze_parts(self) -> list[str]:
        """Freezes what `frozen` names, at the end of `__init__`; returns unknown names.

        A subclass may add the rest: `from_config` asks once more.
        """
        there = dict(_parts(self)) if self._frozen else {}
        # parents come first: they set their children's, which then differ or not
        for name, part in there.items():
            part.trainable = name not in self._frozen
        return sorted(set(self._frozen) - set(there))

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        layer = super().from_config(config)  # type: ignore
        missing = layer.freeze_parts()
        if missing:
            raise ValueError(
                f"frozen must name parts of {cls.__name__}. Received: "
                f"{', '.join(missing)}"
            )
        return layer

    def get_config(self) -> dict[str, Any]:
        parts = dict(_parts(self))
        frozen = [name for name, part in parts.items() if not part.trainable]
        if len(frozen) == len(parts) and not self.trainable:  # type: ignore
            frozen = []  # the whole is frozen, which Keras keeps
        return {**super().get_config(), "frozen": frozen}  # type: ignore


def _parts(layer: keras.Layer, prefix: str = "") -> Iterator[tuple[str, keras.Layer]]:
    """Yields `(name, layer)` of all sublayers, but of those that keep their own."""
    # with PyTorch's backend a layer is a torch.nn.Module, which keeps parts elsewhere
    attributes = {**vars(layer), **vars(layer).get("_modules", {})}
    for name, value in attributes.items():
        if name == "_layers":
            continue
        if isinstance(value, keras.Layer):
            parts = {name: value}
        elif isinstance(value, (list, tuple)):
            parts = {f"{name}.{index}": one for index, one in enumerate(value)}
        else:
            continue
        for key, part in parts.items():
            if isinstance(part, keras.Layer) and not isinstance(part, keras.Model):
                yield f"{prefix}{key}", part
                yield from _parts(part, f"{prefix}{key}.")
