"""Check whether a training step compiles and fits on a TPU, without a TPU.

The step, optimizer included, is lowered to StableHLO and compiled by the TPU compiler
(extra `tpu-check`, Linux) for one chip's share of the batch. Memory is arguments,
outputs, temporaries and code, less what outputs share with arguments. It does not grow
evenly with the batch, as the compiler rematerializes by itself where memory is short:
the largest batch is searched by compiling.
"""

import functools
import gc
import importlib.util
import json
import math
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from keras_mae.profiling import tpu_compiler
from keras_mae.profiling.costs import GIB
from keras_mae.profiling.tpu_report import (
    Check,
    Compiled,
    Result,
    Topology,
    as_gib,
    on_or_off,
)

# GiB per chip that a program may use, by the compiler of libtpu 0.0.52
USABLE_GIB = {"v4": 30.75, "v5e": 15.75, "v5p": 95.73, "v6e": 31.24}
PACKAGES = ("jax", "jaxlib", "libtpu")
MAX_COMPILATIONS = 8  # of a search
# how TensorFlow's message begins where XLA does not support an operation
_NOT_LOWERED = "Failed getting HLO text"
_GRANULE = 8  # images: TPUs work on eight rows at a time


def require_compiler():
    """Raises `ValueError` if a package of the extra `tpu-check` is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            "Compiling for a TPU needs the TPU compiler (Linux, x86-64): "
            f"pip install 'keras-mae[tpu-check]'. Missing: {', '.join(missing)}"
        )


def parse_topology(name):
    """Returns the `Topology` of a name such as `"v5e:4x4"` or `"v4:2x2x4"`."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if not match or match[1] not in USABLE_GIB:
        raise ValueError(
            "A TPU topology must be GENERATION:SHAPE, such as v5e:4x4 or v4:2x2x4 (v4 "
            "and v5p have three axes), with a generation of "
            f"{', '.join(USABLE_GIB)}. Received: {name!r}"
        )
    require_compiler()
    answer = _ask_compiler(name)
    chips = math.prod(map(int, match[2].split("x")))
    if answer.get("devices") != chips:
        raise ValueError(
            f"The TPU compiler does not support topology {name!r}: "
            f"{_one_line(answer.get('error', answer))}"
        )
    return Topology(name, match[1], chips, int(USABLE_GIB[match[1]] * GIB))


def check(make_model, topology, batch_size, accumulation_steps=1, progress=print):
    """Compiles a training step for a TPU, with and without rematerialization."""
    require_compiler()
    parts = topology.chips * accumulation_steps
    if batch_size < 1 or batch_size % parts:
        raise ValueError(
            f"batch_size must be divisible by the {topology.chips} chips and "
            f"{accumulation_steps} accumulation steps. Received: {batch_size}"
        )
    results = []
    for rematerialize in (False, True):
        # one model at a time: a large one and its optimizer take gigabytes
        gc.collect()
        model = make_model(rematerialize)
        gradient_bytes = _gradient_bytes(model)
        compile_at = functools.cache(
            functools.partial(
                _compile_at, model, topology, accumulation_steps, progress
            )
        )
        progress(f"Rematerialization {on_or_off(rematerialize)}:")
        requested = compile_at(batch_size // topology.chips)
        bounds = None, None
        if requested.error is None or requested.is_too_large:
            granule = math.lcm(_GRANULE, accumulation_steps)
            bounds = find_largest_batch(compile_at, requested, topology.memory, granule)
        results.append(Result(rematerialize, requested, *bounds))
        del model, compile_at
    return Check(
        topology, batch_size, accumulation_steps, gradient_bytes, tuple(results)
    )


def find_largest_batch(compile_at, first, memory, granule=_GRANULE):
    """Returns the largest batch found to fit, and the smallest found not to."""
    fits, fails = 0, None
    last = first
    for compilations in range(MAX_COMPILATIONS + 1):
        if last.fits(memory):
            fits = last.batch
        else:
            fails = last.batch
        if fails is None:
            # first the batch predicted from this one, then half as much again
            guess = fits * 3 // 2 if compilations else _predict(first, memory)
            batch = max(guess // granule * granule, fits + granule)
        else:
            batch = max((fits + fails) // 2 // granule * granule, granule)
        done = fails is not None and (
            fails - fits <= max(granule, fits // 8) or not fits < batch < fails
        )
        if done or compilations == MAX_COMPILATIONS:
            break
        last = compile_at(batch)
    return fits, fails


def _one_line(text):
    """First line of a compiler's message that is not blank."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return (lines or ["no message"])[0][:400]


def _gradient_bytes(model):
    import tensorflow as tf

    return sum(
        math.prod(variable.shape) * tf.as_dtype(variable.dtype).size
        for variable in model.trainable_variables
    )


def _predict(compiled, memory):
    """Batch that would fill the memory, extrapolated from one that fits."""
    fixed = compiled.outputs + compiled.code  # the variables: each output is one
    per_image = max(1, (compiled.memory - fixed) // compiled.batch)
    return int((memory - fixed) // per_image)


def _compile_at(model, topology, accumulation_steps, progress, batch):
    """Lowers and compiles the step for a batch per chip."""
    import tensorflow as tf

    try:
        text = lower_step(model, batch)
    except (ValueError, tf.errors.OpError) as error:
        if _NOT_LOWERED not in str(error) and isinstance(error, ValueError):
            raise  # a mistake in the step, whatever compiles it
        answer = {"error": str(error).replace(_NOT_LOWERED, "").strip("': ")}
    else:
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "step.mlir")
            program.write_text(text)
            del text
            answer = _ask_compiler(topology.name, program)
    if "error" in answer:
        answer["error"] = _one_line(answer["error"])
    compiled = Compiled(batch, **answer)
    if compiled.error is None:
        progress(f"  {batch} images per chip: {as_gib(compiled.memory)} GiB")
    else:
        progress(f"  {batch} images per chip: {compiled.error}")
    return compiled


def lower_step(model, batch):
    """StableHLO of a compiled model's training step; nothing is compiled or run."""
    import tensorflow as tf

    # a TPU's step is compiled whole
    model.fuses = model.is_cpu_graph = False
    # a graph can't make the optimizer's variables
    model.optimizer.build(model.trainable_variables)
    step = tf.function(model.train_step, jit_compile=True)
    shape = (batch, *model.encoder.image_size, model.encoder.num_channels)
    lower = step.experimental_get_compiler_ir(tf.TensorSpec(shape, tf.float32))
    return lower(stage="stablehlo", platform_name="CPU")


def _ask_compiler(*arguments):
    """Runs `tpu_compiler` as a subprocess; returns its answer."""
    # -P: modules beside that file must not shadow others of the same name
    command = [sys.executable, "-P", tpu_compiler.__file__, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(finished.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        # it crashed, or was killed for its memory
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        return {"error": f"The compiler exited with {finished.returncode}: {last}"}
