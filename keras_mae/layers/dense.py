"""`keras.layers.Dense` that saves LoRA's matrices unmerged, and its quantization."""

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

_LORA = ("lora_kernel_a", "lora_kernel_b")


class Dense(keras.layers.Dense):
    """A `Dense` layer that saves LoRA's matrices beside the kernel."""

    lora_enabled: bool

    def quantize(
        self, mode: str | None = None, type_check: bool = True, config: Any = None
    ) -> None:
        # Keras refuses subclasses, which may compute something else; this one doesn't
        type_check = type_check and type(self) is not Dense
        super().quantize(mode, type_check=type_check, config=config)

    @property
    def trainable(self) -> bool:
        return super().trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        keras.layers.Dense.trainable.fset(self, value)
        self._mark_variables()

    def _mark_variables(self):
        """Marks what is trained; an assignment of the same value does nothing."""
        for variable in self._trainable_variables:
            variable.trainable = self.trainable
        if self.lora_enabled:
            self._kernel.trainable = False  # Keras would train it again

    def enable_lora(
        self, rank: int, lora_alpha: float | None = None, **kwargs: Any
    ) -> None:
        # at build Keras passes the rank alone
        super().enable_lora(rank, lora_alpha or self.lora_alpha, **kwargs)
        self._mark_variables()  # the new matrices too

    @contextmanager
    def _without_lora(self) -> Iterator[None]:
        enabled, self.lora_enabled = self.lora_enabled, False
        try:
            yield
        finally:
            self.lora_enabled = enabled

    # Keras merges them, and loads zeros, from which no gradient leads away
    def save_own_variables(self, store: MutableMapping[str, Any]) -> None:
        with self._without_lora():
            super().save_own_variables(store)
        if self.lora_enabled:
            for name in _LORA:
                store[name] = getattr(self, name)

    def load_own_variables(self, store: MutableMapping[str, Any]) -> None:
        if not self.lora_enabled:
            return super().load_own_variables(store)
        if _LORA[0] in store.keys():  # noqa: SIM118, a file's store is no mapping
            values = [store[name] for name in _LORA]
            with self._without_lora():
                super().load_own_variables(store)
        else:
            # a file from before LoRA: its update begins at 0, and can be trained
            values = [ops.convert_to_numpy(self.lora_kernel_a), 0]
            super().load_own_variables(store)
            values[1] = ops.zeros(self.lora_kernel_b.shape)
        for name, value in zip(_LORA, values, strict=True):
            getattr(self, name).assign(value)

    def merge_lora(self) -> None:
        """Adds the product of LoRA's matrices to the kernel, and drops them."""
        if not self.lora_enabled:
            return
        merged: dict[str, Any] = {}
        if self.quantization_mode is not None:
            super().save_own_variables(merged)  # quantizes the sum
        else:
            # in float32: Keras's own sum is rounded to the compute dtype
            kernel, a, b = (
                ops.convert_to_numpy(one).astype("float32")
                for one in (self._kernel, self.lora_kernel_a, self.lora_kernel_b)
            )
            self._kernel.assign(kernel + self.lora_alpha / self.lora_rank * (a @ b))
        self._drop_lora()
        if merged:
            super().load_own_variables(merged)

    def _drop_lora(self):
        self.lora_enabled = False
        self.lora_rank = self.lora_alpha = None
        self._tracker.unlock()
        for name in _LORA:
            delattr(self, name)
        self._tracker.lock()
        self._mark_variables()
