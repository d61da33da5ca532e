"""Mixin that saves which sublayers are frozen, quantized or have LoRA."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import keras

from keras_mae.layers import adapted


class KeepsFrozenParts:
    """Mixin: `part.trainable = False`, `quantize` and LoRA are kept in the config.

    A functional Keras model keeps them layer by layer. Our models make their layers
    from sizes, so the configuration lists which of them were changed.

    Args:
        frozen: Names of frozen parts, as in `"blocks.0.attention"`.
        quantized: Dict from the name of a quantized part to its
            `keras.quantizers.QuantizationConfig`, serialized.
        lora: Dict from the name of a part with LoRA to its rank and alpha.
        **kwargs: Those of the next class.
    """

    _frozen: tuple[str, ...] = ()
    _quantized: Mapping[str, Any] = {}
    _lora: Mapping[str, Any] = {}

    def __init__(
        self,
        *args: Any,
        frozen: Sequence[str] = (),
        quantized: Mapping[str, Any] | None = None,
        lora: Mapping[str, Sequence[float]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._frozen = tuple(frozen)
        self._quantized, self._lora = dict(quantized or {}), dict(lora or {})

    def freeze_parts(self) -> dict[str, list[str]]:
        """Restores parts at the end of `__init__`; returns unknown names by argument.

        A subclass may add the rest: `from_config` asks once more.
        """
        wanted = {
            "frozen": self._frozen,
            "quantized": self._quantized,
            "lora": self._lora,
        }
        there = dict(parts_of(self)) if any(wanted.values()) else {}
        for name, part in there.items():
            if name in self._quantized:
                adapted.quantize(part, self._quantized[name])
            if name in self._lora:
                adapted.enable_lora(part, *self._lora[name])
        # parents come first: they set their children's, which then differ or not
        for name, part in there.items() if self._frozen else ():
            part.trainable = name not in self._frozen
        unknown = {key: sorted(set(wanted[key]) - set(there)) for key in wanted}
        return {key: names for key, names in unknown.items() if names}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Any:
        layer = super().from_config(config)  # type: ignore
        for key, missing in layer.freeze_parts().items():
            raise ValueError(
                f"{key} must name parts of {cls.__name__}. Received: "
                f"{', '.join(missing)}"
            )
        return layer

    def get_config(self) -> dict[str, Any]:
        parts = dict(parts_of(self))
        frozen = [name for name, part in parts.items() if not part.trainable]
        if len(frozen) == len(parts) and not self.trainable:  # type: ignore
            frozen = []  # the whole is frozen, which Keras keeps
        quantized = {name: adapted.quantization(part) for name, part in parts.items()}
        lora = {name: adapted.lora(part) for name, part in parts.items()}
        return {
            **super().get_config(),  # type: ignore
            "frozen": frozen,
            "quantized": {name: value for name, value in quantized.items() if value},
            "lora": {name: value for name, value in lora.items() if value},
        }


def parts_of(layer: keras.Layer, prefix: str = "") -> Iterator[tuple[str, keras.Layer]]:
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
                yield from parts_of(part, f"{prefix}{key}.")
