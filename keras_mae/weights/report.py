"""Report of loading or saving weights: what was copied, left out, resized."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PortReport:
    """Report of a conversion of weights, loaded or saved; `print` it.

    Args:
        place: Where the weights came from or went to.
        format: The format of keys and file.
        filled: Int, the number of tensors copied.
        target: `"pixels"` or `"normalized pixels"`, what the decoder predicts, or
            `None` where the source does not say.
        left_out: Tuple of keys (of variables, when saving) left out on purpose.
        fresh: Tuple of the model's parts that the source lacks.
        resized: Tuple of sentences on what was resized.
        notes: Tuple of other notes.

    Example:

    ```python
    print(PortReport("mae.pth", "facebook/timm, PyTorch pickle", filled=254))
    ```
    """

    place: str
    format: str
    filled: int
    target: str | None = None
    left_out: tuple = ()
    fresh: tuple = ()
    resized: tuple = ()
    notes: tuple = ()

    def __str__(self) -> str:
        lines = [f"{self.place}: {self.format}", f"copied: {self.filled} tensors"]
        if self.target:
            lines.append(f"target: {self.target}")
        if self.left_out:
            some = ", ".join(self.left_out[:3])
            more = len(self.left_out) - 3
            some += f" and {more} more" if more > 0 else ""
            lines.append(f"left out: {len(self.left_out)} ({some})")
        lines += [f"fresh: {part}" for part in self.fresh]
        lines += [f"resized: {sentence}" for sentence in self.resized]
        lines += [f"note: {sentence}" for sentence in self.notes]
        return "\n  ".join(lines)
