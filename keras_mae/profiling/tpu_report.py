"""Results of compiling a training step for a TPU, and their report as text."""

import dataclasses

from keras_mae.profiling.costs import GIB


@dataclasses.dataclass(frozen=True)
class Topology:
    """A TPU slice: `name`, `generation`, `chips`, and bytes of `memory` per chip."""

    name: str
    generation: str
    chips: int
    memory: int


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Compiler output of one chip's program: its bytes and FLOPs, or `error`."""

    batch: int
    arguments: int = 0
    outputs: int = 0
    temporaries: int = 0
    code: int = 0
    aliased: int = 0
    flops: float = 0.0
    error: str | None = None

    @property
    def memory(self):
        """Total bytes; what outputs share with arguments counts once."""
        parts = (self.arguments, self.outputs, self.temporaries, self.code)
        return sum(parts) - self.aliased

    @property
    def is_too_large(self):
        """Whether the program failed to compile for lack of memory."""
        return "RESOURCE_EXHAUSTED" in (self.error or "")

    def fits(self, memory):
        """Whether the program compiled, and needs no more than `memory` bytes."""
        return self.error is None and self.memory <= memory


@dataclasses.dataclass(frozen=True)
class Result:
    """Result with, or without, rematerialization."""

    rematerialize: bool
    requested: Compiled
    # batch per chip found to fit; 0: none, `None`: not searched
    largest: int | None = None
    too_large: int | None = None  # the smallest batch found not to fit


@dataclasses.dataclass(frozen=True)
class Check:
    """What `tpu_check.check` returns; `gradient_bytes` are those of one all-reduce."""

    topology: Topology
    batch_size: int
    accumulation_steps: int
    gradient_bytes: int
    results: tuple


def report(outcome):
    """Formats a `Check` as text of several lines."""
    topology = outcome.topology
    memory = as_gib(topology.memory)
    lines = [
        f"{topology.name}: {topology.chips} chips of {memory} GiB; "
        f"global batch size "
        f"{outcome.batch_size}, {outcome.batch_size // topology.chips} images per chip",
        *(line for result in outcome.results for line in _lines(result, outcome)),
        "Memory: arguments + outputs + temporaries + code - what outputs share with "
        "arguments.",
        "One chip's program was compiled. Data parallelism adds an all-reduce of the "
        f"gradients: {outcome.gradient_bytes / 1e6:,.0f} MB per step.",
    ]
    return "\n".join(lines)


def _lines(result, outcome):
    memory, requested = outcome.topology.memory, result.requested
    yield f"rematerialization {on_or_off(result.rematerialize)}"
    if requested.error is not None:
        why = "does not fit" if requested.is_too_large else "does not compile"
        yield f"  {why}: {requested.error}"
    else:
        fits = "compiles" if requested.fits(memory) else "compiles, but does not fit"
        yield f"  {fits}: {as_gib(requested.memory)} of {as_gib(memory)} GiB per chip"
        # the compiler counts a loop's body once
        flops = requested.flops * outcome.accumulation_steps / 1e12
        yield f"  {flops:,.3g} TFLOP per chip and step"
    if result.largest is not None:
        beyond = f" ({result.too_large} does not fit)" if result.too_large else "+"
        yield f"  largest batch per chip found to fit: {result.largest}{beyond}"


def on_or_off(flag):
    return "on" if flag else "off"


def as_gib(count):
    return f"{count / GIB:,.2f}"
