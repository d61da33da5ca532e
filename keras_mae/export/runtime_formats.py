"""How functions are written for other runtimes, and run by them on a CPU in float32."""

import functools
import importlib.util
import os
import tempfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

_LITERT_FILE = "model.tflite"


class _Format(NamedTuple):
    """A runtime's files."""

    write: Callable  # folder, concrete functions by name
    load: Callable  # paths of files -> functions of arrays by name
    pattern: str  # of the files
    modules: tuple  # Python's, to write and to load


def check_installed(format):
    """Raises if what writes and runs a format is not installed."""
    modules = FORMATS[format].modules
    if not all(map(importlib.util.find_spec, modules)):
        raise ValueError(
            f"{format} needs {', '.join(modules)}: pip install 'keras-mae[{format}]'"
        )


def _checked(name, shapes, run):
    """Checks arrays first: OpenVINO takes its last ones where an input is missing."""

    def call(*unnamed, **inputs):
        if unnamed or set(inputs) != set(shapes):
            received = [*inputs, *("an array without a name" for _ in unnamed)]
            raise ValueError(
                f"{name} takes {', '.join(f'{key}=' for key in shapes)}. "
                f"Received: {', '.join(received) or 'nothing'}"
            )
        arrays = {key: np.asarray(inputs[key], "float32") for key in shapes}
        count = max(len(np.atleast_1d(array)) for array in arrays.values())
        for key, array in arrays.items():
            wanted = (count, *shapes[key][1:])
            if array.shape != wanted or not count:
                raise ValueError(
                    f"{key} must have the shape {(max(count, 1), *wanted[1:])}. "
                    f"Received: {array.shape}"
                )
        return run(**arrays)

    return call


def _write_openvino(folder, traced):
    import openvino

    for name, function in traced.items():
        converted = openvino.convert_model(function)
        openvino.save_model(converted, folder / f"{name}.xml", compress_to_fp16=False)


def _load_openvino(files):
    import openvino

    # some CPUs would compute in bfloat16 by default
    options = {"INFERENCE_PRECISION_HINT": "f32"}
    core = openvino.Core()

    def run(compiled, **inputs):
        found = compiled(inputs)
        return {output.any_name: found[output] for output in compiled.outputs}

    functions = {}
    for file in files:
        model = core.compile_model(file, "CPU", options)
        shapes = {
            each.any_name: [
                size.get_length() if size.is_static else None
                for size in each.partial_shape
            ]
            for each in model.inputs
        }
        functions[file.stem] = _checked(
            file.stem, shapes, functools.partial(run, model)
        )
    return functions


def _write_litert(folder, traced):
    module = tf.Module()
    # the functions share their weights
    module.captured = [list(function.variables) for function in traced.values()]
    with tempfile.TemporaryDirectory() as saved:
        tf.saved_model.save(module, saved, signatures=traced)
        converter = tf.lite.TFLiteConverter.from_saved_model(
            saved, signature_keys=list(traced)
        )
        try:
            content = converter.convert()
        except Exception as error:  # of the converter's own kinds
            text = str(error).splitlines()[0]
            raise ValueError(f"LiteRT can't convert this model: {text}") from error
    (folder / _LITERT_FILE).write_bytes(content)


def _load_litert(files):
    from ai_edge_litert.interpreter import Interpreter

    (file,) = files
    interpreter = Interpreter(str(file), num_threads=os.cpu_count())
    functions = {}
    for name in interpreter.get_signature_list():
        run = interpreter.get_signature_runner(name)
        shapes = {
            key: [int(size) if size >= 0 else None for size in each["shape_signature"]]
            for key, each in run.get_input_details().items()
        }
        functions[name] = _checked(name, shapes, run)
    return functions


def _write_onnx(folder, traced):
    import tf2onnx

    def by_position(function, names, *inputs):
        return function(**dict(zip(names, inputs, strict=True)))

    for name, function in traced.items():
        arguments, others = function.structured_input_signature
        specs = [*arguments, *others.values()]
        names = [spec.name for spec in specs]
        positional = functools.partial(by_position, function, names)
        tf2onnx.convert.from_function(
            tf.function(positional, autograph=False),
            input_signature=specs,
            opset=18,
            output_path=str(folder / f"{name}.onnx"),
        )


def _load_onnx(files):
    import onnxruntime

    def run(session, **inputs):
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    functions = {}
    for file in files:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
        shapes = {
            each.name: [size if isinstance(size, int) else None for size in each.shape]
            for each in session.get_inputs()
        }
        found = functools.partial(run, session)
        functions[file.stem] = _checked(file.stem, shapes, found)
    return functions


FORMATS = {
    "openvino": _Format(_write_openvino, _load_openvino, "*.xml", ("openvino",)),
    "litert": _Format(_write_litert, _load_litert, _LITERT_FILE, ("ai_edge_litert",)),
    "onnx": _Format(_write_onnx, _load_onnx, "*.onnx", ("tf2onnx", "onnxruntime")),
}
