"""Records what TF Serving answers to a fixed list of calls, for others to compare.

Run, against TF Serving with the models of tests/conformance/models.py:

    python -m tests.conformance.record --endpoint=localhost:8500 \
        --rest-endpoint=localhost:8501 --server-version="TensorFlow ModelServer: ..."

Writes `recorded.json` beside this file, which `test_recorded.py` compares.
"""

import argparse
import datetime
import difflib
import json
import re
import sys
from pathlib import Path

import grpc
from google.protobuf import json_format, text_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from tests.conformance.calls import Caller
from tests.conformance.conftest import Server

FILE = Path(__file__).with_name("recorded.json")

# gRPC method -> attribute of `Caller`, and its request
METHODS = {
    "Predict": ("prediction", predict_pb2.PredictRequest),
    "Classify": ("prediction", classification_pb2.ClassificationRequest),
    "Regress": ("prediction", regression_pb2.RegressionRequest),
    "MultiInference": ("prediction", inference_pb2.MultiInferenceRequest),
    "GetModelMetadata": ("prediction", get_model_metadata_pb2.GetModelMetadataRequest),
    "GetModelStatus": ("models", get_model_status_pb2.GetModelStatusRequest),
    "HandleReloadConfigRequest": ("models", model_management_pb2.ReloadConfigRequest),
}

ECHO = 'model_spec { name: "echo" }'
X = (
    'inputs { key: "x" value { dtype: DT_FLOAT '
    "tensor_shape { dim { size: 1 } dim { size: 2 } } float_val: [1.5, 0.1] } }"
)
COUNT = 'model_spec { name: "echo" signature_name: "count" }'
N = (
    'inputs { key: "n" value { dtype: DT_INT64 tensor_shape { dim { size: 1 } } '
    "int64_val: 9007199254740993 } }"
)
EXAMPLE = (
    "input { example_list { examples { features { feature "
    '{ key: "x" value { float_list { value: 0.25 } } } } } } }'
)


def examples_of(signature, name="examples"):
    """Writes a request's model and one example."""
    spec = f'name: "{name}" signature_name: "{signature}"'
    return f"model_spec {{ {spec} }} {EXAMPLE}"


def tasks(*rows):
    """Writes a MultiInference request of (model, signature, method)."""
    text = "".join(
        f'tasks {{ model_spec {{ name: "{model}" signature_name: "{signature}" }} '
        f'method_name: "tensorflow/serving/{method}" }} '
        for model, signature, method in rows
    )
    return text + EXAMPLE


# name -> gRPC method and request
GRPC = {
    "predict": ("Predict", f"{ECHO} {X}"),
    "predict int64": ("Predict", f"{COUNT} {N}"),
    "predict filtered": ("Predict", f'{ECHO} {X} output_filter: "row_sum"'),
    "predict unknown output": ("Predict", f'{ECHO} {X} output_filter: "z"'),
    "predict output twice": (
        "Predict",
        f'{ECHO} {X} output_filter: "row_sum" output_filter: "row_sum"',
    ),
    "predict without model": ("Predict", X),
    "predict without name": ("Predict", f"model_spec {{}} {X}"),
    "predict unknown model": ("Predict", f'model_spec {{ name: "no" }} {X}'),
    "predict unknown version": (
        "Predict",
        f'model_spec {{ name: "echo" version {{ value: 50 }} }} {X}',
    ),
    "predict unknown label": (
        "Predict",
        f'model_spec {{ name: "mae" version_label: "no" }} {X}',
    ),
    "predict unknown signature": (
        "Predict",
        f'model_spec {{ name: "echo" signature_name: "no" }} {X}',
    ),
    "predict without inputs": ("Predict", ECHO),
    "predict another input": ("Predict", ECHO + X.replace('"x"', '"y"')),
    "predict another dtype": ("Predict", ECHO + N.replace('"n"', '"x"')),
    "classify": ("Classify", examples_of("both")),
    "classify classes": ("Classify", examples_of("classes")),
    "classify scores": ("Classify", examples_of("scores")),
    "classify flat scores": ("Classify", examples_of("flat_scores")),
    "classify no signature": ("Classify", examples_of("no")),
    "classify a regression": ("Classify", examples_of("")),
    "classify nothing": (
        "Classify",
        'model_spec { name: "examples" signature_name: "both" }',
    ),
    "regress": ("Regress", examples_of("")),
    "regress column": ("Regress", examples_of("column")),
    "regress wide": ("Regress", examples_of("wide")),
    "regress doubles": ("Regress", examples_of("doubles")),
    "regress a classification": ("Regress", examples_of("both")),
    "regress unknown model": ("Regress", examples_of("", "no")),
    "multi inference": (
        "MultiInference",
        tasks(("examples", "", "regress"), ("examples", "both", "classify")),
    ),
    "multi inference of two models": (
        "MultiInference",
        tasks(("examples", "", "regress"), ("echo", "", "regress")),
    ),
    "multi inference by predict": (
        "MultiInference",
        tasks(("examples", "", "predict")),
    ),
    "multi inference of nothing": ("MultiInference", EXAMPLE),
    "metadata": ("GetModelMetadata", f'{ECHO} metadata_field: "signature_def"'),
    "metadata of no field": ("GetModelMetadata", ECHO),
    "metadata of unknown field": ("GetModelMetadata", f'{ECHO} metadata_field: "x"'),
    "status": ("GetModelStatus", 'model_spec { name: "mae" }'),
    "status by label": (
        "GetModelStatus",
        'model_spec { name: "mae" version_label: "stable" }',
    ),
    "status of unknown version": (
        "GetModelStatus",
        'model_spec { name: "mae" version { value: 50 } }',
    ),
    "status of unknown model": ("GetModelStatus", 'model_spec { name: "no" }'),
    "reload of custom models": (
        "HandleReloadConfigRequest",
        "config { custom_model_config {} }",
    ),
}

# name -> HTTP method, path below /v1/models/, and body
REST = {
    "rest predict rows": ("POST", "echo:predict", '{"instances": [[1.5, 0.1]]}'),
    "rest predict columns": ("POST", "echo:predict", '{"inputs": {"x": [[1, 1e-7]]}}'),
    "rest predict NaN": ("POST", "echo:predict", '{"inputs": [[NaN, -Infinity]]}'),
    "rest predict int64": (
        "POST",
        "echo:predict",
        '{"signature_name": "count", "instances": [9007199254740993]}',
    ),
    "rest predict strings": (
        "POST",
        "echo:predict",
        '{"signature_name": "text", "instances": ["a/\\"", {"b64": "AQI="}]}',
    ),
    "rest predict ragged": ("POST", "echo:predict", '{"instances": [[1, 2], [3]]}'),
    "rest predict text": ("POST", "echo:predict", '{"inputs": [["a", 1]]}'),
    "rest predict nothing": ("POST", "echo:predict", "{}"),
    "rest predict both": ("POST", "echo:predict", '{"inputs": [], "instances": []}'),
    "rest predict empty": ("POST", "echo:predict", ""),
    "rest predict half": ("POST", "echo:predict", "{"),
    "rest predict unknown model": ("POST", "no:predict", '{"inputs": []}'),
    "rest predict unknown signature": (
        "POST",
        "echo:predict",
        '{"signature_name": "no", "inputs": []}',
    ),
    "rest predict large and small": (
        "POST",
        "echo:predict",
        '{"inputs": [[16777217, 1e39], [4500000, 0.000015], [0.33333333333, Inf]]}',
    ),
    "rest predict bool": (
        "POST",
        "echo:predict",
        '{"signature_name": "invert", "inputs": [true, false]}',
    ),
    "rest predict bool of a number": (
        "POST",
        "echo:predict",
        '{"signature_name": "invert", "inputs": [1]}',
    ),
    "rest predict uint8": (
        "POST",
        "echo:predict",
        '{"signature_name": "small", "inputs": [255, 300, -1]}',
    ),
    "rest predict to half": (
        "POST",
        "echo:predict",
        '{"signature_name": "to_half", "inputs": [1.5]}',
    ),
    "rest predict from bfloat16": (
        "POST",
        "echo:predict",
        '{"signature_name": "from_bfloat16", "inputs": [1.5]}',
    ),
    "rest predict base64 in lines": (
        "POST",
        "echo:predict",
        '{"signature_name": "text", "inputs": [{"b64": "AQI\\r\\n D"}]}',
    ),
    "rest predict with text behind": (
        "POST",
        "echo:predict",
        '\ufeff{"inputs": [[1, 2]]} and more',
    ),
    "rest predict with a query": ("POST", "echo:predict?a=1", '{"inputs": [[1, 2]]}'),
    "rest predict in capitals": ("POST", "echo:PREDICT", '{"inputs": [[1, 2]]}'),
    "rest predict rows of shapes": (
        "POST",
        "echo:predict",
        '{"instances": [[1, 2], [[3, 4]]]}',
    ),
    "rest predict rows of other names": (
        "POST",
        "echo:predict",
        '{"instances": [{"y": [1, 2]}]}',
    ),
    "rest classify": (
        "POST",
        "examples:classify",
        '{"signature_name": "both", "examples": [{"x": 0.25}, {"x": [0.5]}]}',
    ),
    "rest classify scores": (
        "POST",
        "examples:classify",
        '{"signature_name": "scores", "examples": [{"x": 0.25}]}',
    ),
    "rest classify classes": (
        "POST",
        "examples:classify",
        '{"signature_name": "classes", "examples": [{"x": 0.25}]}',
    ),
    "rest classify nothing": ("POST", "examples:classify", '{"examples": []}'),
    "rest regress": (
        "POST",
        "examples:regress",
        '{"context": {"x": 0.25}, "examples": [{}, {}]}',
    ),
    "rest regress of mixed types": (
        "POST",
        "examples:regress",
        '{"examples": [{"x": [1, 2.5]}]}',
    ),
    "rest regress nothing": ("POST", "examples:regress", "{}"),
    "rest explain": ("POST", "echo:explain", "{}"),
    "rest metadata": ("GET", "echo/metadata", ""),
    "rest metadata of unknown model": ("GET", "no/metadata", ""),
    "rest status": ("GET", "mae", ""),
    "rest status by label": ("GET", "mae/labels/stable", ""),
    "rest status of unknown version": ("GET", "mae/versions/50", ""),
    "rest status of version beyond int64": ("GET", f"mae/versions/{2**63}", ""),
}


def ask(caller, name):
    """Sends a call of the lists above; returns its answer as JSON."""
    if name in GRPC:
        return normalized(_ask_grpc(caller, *GRPC[name]))
    return normalized(_ask_rest(caller, *REST[name]))


def record(caller, version):
    """Returns the answers to all calls, beside what answered and when."""
    return {
        "server": version,
        "date": datetime.date.today().isoformat(),
        "answers": {name: ask(caller, name) for name in (*GRPC, *REST)},
    }


def difference(recorded, answer):
    """Returns a diff of two answers as lines of text; none if they are equal."""
    texts = [
        json.dumps(one, indent=1, sort_keys=True, ensure_ascii=False).splitlines()
        for one in (recorded, answer)
    ]
    return list(difflib.unified_diff(*texts, "TF Serving", "this server", lineterm=""))


def normalized(value):
    """Leaves out of an answer what servers need not have in common."""
    if isinstance(value, dict):
        return {key: normalized(item) for key, item in value.items()}
    if isinstance(value, list):
        return [normalized(item) for item in value]
    if isinstance(value, str):
        # nodes of TensorFlow's graph, and its stack
        value = re.split(r"\s*\n|\s*\[\[\{\{node", value)[0]
        # messages in an order of their own, and the parser's words
        return re.sub(
            r"(SignatureDef: |Signature was: |JSON Parse error: ).*", r"\1...", value
        )
    return value


def _ask_grpc(caller, method, text):
    stub, kind = METHODS[method]
    request = text_format.Parse(text, kind())
    try:
        response = getattr(getattr(caller, stub), method)(request, timeout=60)
    except grpc.RpcError as error:
        return {"code": error.code().name, "message": error.details()}
    body = json_format.MessageToDict(response, preserving_proto_field_name=True)
    return {"code": "OK", "body": body}


def _ask_rest(caller, method, path, body):
    status, kind, text = caller.raw(method, f"/v1/models/{path}", body.encode())
    # numbers as they are written: 2.0 is not 2
    parsed = json.loads(text, parse_float=str, parse_int=str, parse_constant=str)
    return {"status": status, "content_type": kind, "body": parsed}


def main(arguments=None):
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--endpoint", required=True, help="HOST:PORT of gRPC")
    parser.add_argument("--rest-endpoint", required=True, help="HOST:PORT of REST")
    parser.add_argument(
        "--server-version", required=True, help="tensorflow_model_server --version"
    )
    parser.add_argument("--out", type=Path, default=FILE, help="the file to write")
    options = parser.parse_args(arguments)
    with Caller(Server(options.endpoint, options.rest_endpoint, None)) as caller:
        # TF Serving has nothing there, the embedded server its page
        if caller.raw("GET", "/")[0] == 200:
            parser.error("this is the embedded server: record TF Serving")
        found = record(caller, options.server_version)
    text = json.dumps(found, indent=1, sort_keys=True, ensure_ascii=False)
    options.out.write_text(text + "\n")
    print(f"{len(found['answers'])} answers in {options.out}")


if __name__ == "__main__":
    sys.exit(main())
