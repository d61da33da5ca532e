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


class Format(NamedTuple):
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

    models = {file.stem: core.compile_model(file, "CPU", options) for file in files}
    return {name: functools.partial(run, model) for name, model in models.items()}


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
    names = interpreter.get_signature_list()
    return {name: interpreter.get_signature_runner(name) for name in names}


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
            custom_op_handlers={"Erfc": (_erfc_by_erf, [])},
            output_path=str(folder / f"{name}.onnx"),
        )


def _erfc_by_erf(graph, node, name, _):
    """Replaces Erfc, of GELU, which ONNX lacks."""
    source = node.input[0]
    about = {"shapes": node.output_shapes, "dtypes": node.output_dtypes}
    graph.remove_node(node.name)
    erf = graph.make_node("Erf", [source])
    one = graph.make_const(f"{name}_one", np.array(1, "float32"))
    parts = [one.output[0], erf.output[0]]
    graph.make_node("Sub", parts, outputs=node.output, name=name, **about)


def _load_onnx(files):
    import onnxruntime

    def run(session, **inputs):
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, inputs), strict=True))

    sessions = {
        file.stem: onnxruntime.InferenceSession(
            file, providers=["CPUExecutionProvider"]
        )
        for file in files
    }
    return {name: functools.partial(run, found) for name, found in sessions.items()}


FORMATS = {
    "openvino": Format(_write_openvino, _load_openvino, "*.xml", ("openvino",)),
    "litert": Format(_write_litert, _load_litert, _LITERT_FILE, ("ai_edge_litert",)),
    "onnx": Format(_write_onnx, _load_onnx, "*.onnx", ("tf2onnx", "onnxruntime")),
}
