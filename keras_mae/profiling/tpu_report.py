"""What the TPU compiler said of a training step: its numbers, and their text."""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Topology:
    """A TPU slice: its `name`, `generation`, `chips`, and bytes of `memory` a chip."""

    name: str
    generation: str
    chips: int
    memory: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one chip's program; byte counts are of that chip."""

    batch: int
    arguments: int = 0
    outputs: int = 0
    temporaries: int = 0
    code: int = 0
    aliased: int = 0
    flops: float = 0.0
    refusal: str | None = None

    @property
    def memory(self):
        """Bytes in all; what outputs share with arguments counts once."""
        parts = (self.arguments, self.outputs, self.temporaries, self.code)
        return sum(parts) - self.aliased

    @property
    def is_too_large(self):
        """Whether memory is why the compiler refused."""
        return "RESOURCE_EXHAUSTED" in (self.refusal or "")

    def fits(self, memory):
        """Says whether the program compiled into so many bytes."""
        return self.refusal is None and self.memory <= memory


@dataclasses.dataclass(frozen=True)
class Result:
    """The answer with, or without, rematerialization.

    `largest` is the largest batch a chip that was found to fit, 0 for none and `None`
    where it was not searched; `too_large` the smallest that was found not to.
    """

    rematerialize: bool
    requested: Compiled
    largest: int | None = None
    too_large: int | None = None


@dataclasses.dataclass(frozen=True)
class Check:
    """All that `check` found out; `gradient_bytes` are those of one all-reduce."""

    topology: Topology
    batch_size: int
    accumulation_steps: int
    gradient_bytes: int
    results: tuple


def report(outcome):
    """Writes an outcome down.

    Args:
        outcome: What `check` returned.

    Returns:
        Text of several lines.

    Example:

    ```python
    topology = Topology("v5e:4x4", "v5e", 16, 2**34)
    result = Result(False, Compiled(256, temporaries=2**33, flops=1e12), 500, 512)
    text = report(Check(topology, 4096, 1, 10**9, (result,)))
    assert "8.00 of 16.00 GiB" in text and "500" in text
    ```
    """
    topology = outcome.topology
    memory = as_gib(topology.memory)
    lines = [
        f"{topology.name}: {topology.chips} chips of {memory} GiB each; "
        f"{outcome.batch_size} images an update, "
        f"{outcome.batch_size // topology.chips} a chip",
        *(line for result in outcome.results for line in _lines(result, outcome)),
        "Memory: arguments + outputs + temporaries + code - what outputs share with "
        "arguments.",
        "One chip's program was compiled. Data parallelism adds an all-reduce of the "
        f"gradients: {outcome.gradient_bytes / 1e6:,.0f} MB a step.",
    ]
    return "\n".join(lines)


def _lines(result, outcome):
    """Writes down what holds with, or without, rematerialization."""
    memory, requested = outcome.topology.memory, result.requested
    yield f"rematerialization {on_or_off(result.rematerialize)}"
    if requested.refusal is not None:
        why = "does not fit" if requested.is_too_large else "does not compile"
        yield f"  {why}: {requested.refusal}"
    else:
        fits = "compiles" if requested.fits(memory) else "compiles, but does not fit"
        yield f"  {fits}: {as_gib(requested.memory)} of {as_gib(memory)} GiB a chip"
        # the compiler counts a loop's body once
        flops = requested.flops * outcome.accumulation_steps / 1e12
        yield f"  {flops:,.3g} TFLOP a chip and step"
    if result.largest is not None:
        beyond = f" ({result.too_large} does not fit)" if result.too_large else "+"
        yield f"  largest batch found to fit a chip: {result.largest}{beyond}"


def on_or_off(rematerialize):
    """Says in a word whether blocks are computed twice.

    Args:
        rematerialize: Bool.

    Returns:
        Text.

    Example:

    ```python
    assert on_or_off(True) == "on"
    ```
    """
    return "on" if rematerialize else "off"


def as_gib(count):
    """Writes bytes as GiB.

    Args:
        count: Int, bytes.

    Returns:
        Text.

    Example:

    ```python
    assert as_gib(2**31) == "2.00"
    ```
    """
    return f"{count / GIB:,.2f}"
