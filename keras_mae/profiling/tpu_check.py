"""Will a training step run on a TPU? Its compiler answers, on any Linux machine.

The step that training runs, optimizer included, is lowered to StableHLO and given to
the TPU compiler of the extra `tpu-check`, which needs no TPU. Data parallel: one chip's
program is compiled, for its share of the batch.

Memory is counted as the compiler lays it out: arguments (variables and images),
outputs, temporaries and the program's code, less what outputs share with arguments,
since a variable is updated in place. Where memory is short the compiler computes some
values anew by itself: memory does not grow evenly with the batch, so the largest batch
is searched by compiling.
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
from keras_mae.profiling.tpu_report import (
    GIB,
    Check,
    Compiled,
    Result,
    Topology,
    as_gib,
    on_or_off,
)

# GiB a chip: what the compiler of libtpu 0.0.52 says a program may use
USABLE = {"v4": 30.75, "v5e": 15.75, "v5p": 95.73, "v6e": 31.24}
PACKAGES = ("jax", "jaxlib", "libtpu")
MOST_COMPILATIONS = 8  # of a search
# how TensorFlow begins when XLA has no way to say an operation
UNLOWERED = "Failed getting HLO text"
GRANULE = 8  # images: TPUs work on eight rows at a time


def require():
    """Raises if the TPU compiler is not installed.

    Raises:
        ValueError: If a package of the extra `tpu-check` is missing.

    Example:

    ```python
    try:
        require()
    except ValueError as error:
        assert "tpu-check" in str(error)
    ```
    """
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            "Compiling for a TPU needs its compiler (Linux, x86-64): "
            f"pip install 'keras-mae[tpu-check]'. Missing: {', '.join(missing)}"
        )


def parse_topology(name):
    """Looks a topology up, the shape with the compiler.

    Args:
        name: Generation and chips along each axis, such as `"v5e:4x4"` or
            `"v4:2x2x4"`.

    Returns:
        A `Topology`.

    Raises:
        ValueError: If the generation is unknown, the shape is none, or the compiler
            refuses it or is missing.

    Example:

    ```python
    try:
        parse_topology("v9:4x4")
    except ValueError as error:
        assert "v5e" in str(error)
    ```
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+){1,2})", name)
    if not match or match[1] not in USABLE:
        raise ValueError(
            "A topology is a generation and its chips along two axes, or three for v4 "
            "and v5p, such as v5e:4x4 or v4:2x2x4; generations are "
            f"{', '.join(USABLE)}. Received: {name!r}"
        )
    require()
    answer = _ask_compiler(name)
    chips = math.prod(map(int, match[2].split("x")))
    if answer.get("devices") != chips:
        raise ValueError(
            f"The TPU compiler knows no topology {name!r}: "
            f"{_one_line(answer.get('refusal', answer))}"
        )
    return Topology(name, match[1], chips, int(USABLE[match[1]] * GIB))


def check(make_model, topology, batch_size, accumulation_steps=1, progress=print):
    """Compiles a training step for a TPU, with and without rematerialization.

    Args:
        make_model: Function of `rematerialize` that returns a compiled `MAEPretrainer`.
        topology: A `Topology`.
        batch_size: Int, images an update over all chips.
        accumulation_steps: Int, the parts of a chip's batch that the models were
            compiled for.
        progress: Function of a line of text, called as things become known; minutes
            pass between two.

    Returns:
        A `Check`.

    Raises:
        ValueError: If the compiler is missing, or `batch_size` is not divisible by
            chips and parts.

    Example:

    ```python
    def make_model(rematerialize):
        model = keras_mae.MAEPretrainer.from_preset(
            "mae_tiny", rematerialize=rematerialize
        )
        model.compile(optimizer="adam")
        return model


    try:
        print(check(make_model, Topology("v5e:2x2", "v5e", 4, 2**34), batch_size=6))
    except ValueError as error:
        assert "6" in str(error) or "tpu-check" in str(error)
    ```
    """
    require()
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
        if requested.refusal is None or requested.is_too_large:
            granule = math.lcm(GRANULE, accumulation_steps)
            bounds = find_largest(compile_at, requested, topology.memory, granule)
        results.append(Result(rematerialize, requested, *bounds))
        del model, compile_at
    return Check(
        topology, batch_size, accumulation_steps, gradient_bytes, tuple(results)
    )


def find_largest(compile_at, first, memory, granule=GRANULE):
    """Searches the largest batch that fits, to within an eighth.

    Args:
        compile_at: Function of a batch that returns a `Compiled`.
        first: A `Compiled` to start from.
        memory: Int, bytes.
        granule: Int, of which batches are multiples.

    Returns:
        A tuple: the largest batch found to fit, 0 for none; the smallest found not to,
        or `None` if the search ended before.

    Example:

    ```python
    def compile_at(batch):
        return Compiled(batch, temporaries=10 * batch)


    assert find_largest(compile_at, compile_at(8), memory=1000) == (96, 104)
    ```
    """
    fits, fails = 0, None
    last = first
    for compilations in range(MOST_COMPILATIONS + 1):
        if last.fits(memory):
            fits = last.batch
        else:
            fails = last.batch
        if fails is None:
            # an image takes at most what it takes here: go there, then beyond
            guess = fits * 3 // 2 if compilations else _predict(first, memory)
            batch = max(guess // granule * granule, fits + granule)
        else:
            batch = max((fits + fails) // 2 // granule * granule, granule)
        done = fails is not None and (
            fails - fits <= max(granule, fits // 8) or not fits < batch < fails
        )
        if done or compilations == MOST_COMPILATIONS:
            break
        last = compile_at(batch)
    return fits, fails


def _one_line(text):
    """Shortens a compiler's message to its first line that says something."""
    lines = [line.strip() for line in str(text).splitlines() if line.strip()]
    return (lines or ["no reason given"])[0][:400]


def _gradient_bytes(model):
    """Counts the bytes that the chips exchange at each update."""
    import tensorflow as tf

    return sum(
        math.prod(variable.shape) * tf.as_dtype(variable.dtype).size
        for variable in model.trainable_variables
    )


def _predict(compiled, memory):
    """Predicts the batch that fills the memory, from one that fits."""
    fixed = compiled.outputs + compiled.code  # the variables: each output is one
    per_image = max(1, (compiled.memory - fixed) // compiled.batch)
    return int((memory - fixed) // per_image)


def _compile_at(model, topology, accumulation_steps, progress, batch):
    """Lowers and compiles the step for one batch a chip."""
    import tensorflow as tf

    try:
        text = lower_step(model, batch)
    except (ValueError, tf.errors.OpError) as error:
        if UNLOWERED not in str(error) and isinstance(error, ValueError):
            raise  # a mistake in the step, whatever compiles it
        answer = {"refusal": str(error).replace(UNLOWERED, "").strip("': ")}
    else:
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder, "step.mlir")
            program.write_text(text)
            del text
            answer = _ask_compiler(topology.name, program)
    if "refusal" in answer:
        answer["refusal"] = _one_line(answer["refusal"])
    compiled = Compiled(batch, **answer)
    if compiled.refusal is None:
        progress(f"  {batch} images a chip: {as_gib(compiled.memory)} GiB")
    else:
        progress(f"  {batch} images a chip: {compiled.refusal}")
    return compiled


def lower_step(model, batch):
    """Lowers a model's training step to StableHLO; nothing is compiled or run.

    Args:
        model: A compiled `MAEPretrainer`.
        batch: Int, images.

    Returns:
        Text.

    Example:

    ```python
    model = keras_mae.MAEPretrainer.from_preset("mae_tiny", depth=1, decoder_depth=1)
    model.compile(optimizer="adam")
    assert "tensor<2x32x32x3xf32>" in lower_step(model, batch=2)
    ```
    """
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
    """Runs `tpu_compiler` in a process of its own; returns its answer."""
    # -P: the modules beside that file are not to be imported by their bare names
    command = [sys.executable, "-P", tpu_compiler.__file__, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True)
    try:
        return json.loads(finished.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        # it crashed, or was ended for its memory
        last = (finished.stderr.strip().splitlines() or ["no message"])[-1]
        return {"refusal": f"The compiler ended with {finished.returncode}: {last}"}
