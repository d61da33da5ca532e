"""Errors of the REST and gRPC APIs: messages, gRPC status codes, HTTP statuses."""

import tensorflow as tf

# gRPC status codes -> HTTP statuses, as TF Serving maps them
_HTTP_STATUS = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}
_NUMBERS = {
    getattr(tf.errors, name): name for name in _HTTP_STATUS if hasattr(tf.errors, name)
}


# characters of a message, and of what it quotes: a request may have megabytes
MOST_CHARACTERS, _MOST_QUOTED = 2000, 400


class RequestError(Exception):
    """An error answered to the caller: name of a gRPC status code, and a message."""

    def __init__(self, code, message):
        super().__init__(shortened(message, MOST_CHARACTERS))
        self.code = code

    @property
    def http_status(self):
        return _HTTP_STATUS[self.code]

    @classmethod
    def from_tensorflow(cls, error):
        """Keeps code and message of a `tf.errors.OpError`."""
        # a prefix that the Python session adds to the kernel's message
        message = error.message.removeprefix("Graph execution error:").strip()
        return cls(_NUMBERS.get(error.error_code, "UNKNOWN"), message)


def type_name(dtype):
    """Returns a `tf.DType`'s name as TF Serving writes it."""
    names = {"float16": "half", "float32": "float", "float64": "double"}
    return names.get(dtype.name, dtype.name)


def shortened(text, limit=_MOST_QUOTED):
    """Returns the first characters of a text; other objects as they are."""
    if not isinstance(text, str) or len(text) <= limit:
        return text
    return f"{text[:limit]}..."


def invalid(text, **values):
    """Returns an INVALID_ARGUMENT error with a text from below, its braces filled."""
    values = {name: shortened(value) for name, value in values.items()}
    return RequestError("INVALID_ARGUMENT", text.format(**values))


def unimplemented(text, **values):
    """Returns an UNIMPLEMENTED error likewise."""
    return RequestError("UNIMPLEMENTED", text.format(**values))


def check_batch_size(size, most=None):
    """Raises if a request has more images than `most`."""
    if most is not None and size > most:
        raise invalid(BATCH_TOO_LARGE, size=size, limit=most)


# Texts for `invalid`, most as TF Serving words them

# REST: path and body (a `value` is JSON)
MALFORMED_REQUEST = "Malformed request: {method} {path}"
NO_NAME_IN_PATH = "Missing model name in request."
VERSION_TOO_LARGE = "Failed to convert version: {version} to numeric."
EMPTY_BODY = "JSON Parse error: The document is empty"
PARSE_ERROR = "JSON Parse error: {error} at offset: {offset}"
TOO_MANY_VALUES = (
    "JSON Parse error: the document would take more than {limit} bytes of memory; send "
    "smaller batches, or images as encoded bytes"
)
NESTED_TOO_DEEP = "JSON Parse error: nested too deep"
LONE_SURROGATE = "JSON Parse error: The surrogate pair in string is invalid."
NOT_AN_OBJECT = "JSON Value: {value} Is not object"
SIGNATURE_NAME_NOT_A_STRING = (
    "JSON Value: {value} not formatted correctly. 'signature_name' key must be a "
    "string value."
)

# REST predict: `inputs` (columns) and `instances` (rows)
INPUTS_AND_INSTANCES = (
    "JSON Value: {value} Not formatted correctly expecting only one of 'inputs' or "
    "'instances' keys to exist "
)
NO_INPUTS_OR_INSTANCES = "Missing 'inputs' or 'instances' key"
MISSING_NAMED_INPUT = "Missing named input: {name} in 'inputs' object."
PLAIN_INPUTS = (
    "inputs is a plain value/list, but expecting an object as multiple input tensors "
    "required as per tensorinfo_map"
)
PLAIN_INSTANCES = (
    "instances is a plain list, but expecting list of objects as multiple input "
    "tensors required as per tensorinfo_map"
)
INSTANCES_NOT_A_LIST = "JSON Value: {value} Expecting 'instances' to be an list/array"
EMPTY_INSTANCES = "JSON Value: {value} No values in 'instances' array"
NO_INPUTS_IN_SIGNATURE = "Failed to get input map for signature: {name}"
NO_SUCH_INPUT = "INVALID_ARGUMENT: JSON object: does not have named input: {name}"
MIXED_INSTANCES = "Expecting {wanted} but got {got} at item {index} of input list"
WRONG_KEYS = (
    "Failed to process element: {index} of 'instances' list. JSON object: {value} "
    "keys must be equal to: {names}"
)
WRONG_INSTANCE = (
    "Failed to process element: {index}{key} of 'instances' list. Error: {error}"
)
WRONG_SIZE = "Expecting tensor size: {wanted} but got: {got}"
WRONG_SHAPE = "Expecting shape {wanted} but got: {got}"
INCONSISTENT_BATCH_SIZE = (
    "Tensor name: {name} has inconsistent batch size: {got} expecting: {wanted}"
)
NO_BATCH_AXIS = "Tensor name: {name} has no shape information "
ANSWER_TOO_LARGE = (
    "The answer would take more than {limit} bytes of JSON; send smaller batches, or "
    "ask a signature whose answers are smaller"
)
UNWRITABLE = "Failed to write JSON value for tensor type: {dtype}"

# REST predict: nested lists and their values
TOO_MANY_AXES = "Encountered list at unexpected level: {level}"
LIST_TOO_DEEP = "Encountered list at unexpected level: {level} expected < {levels}"
LIST_TOO_SHALLOW = (
    "JSON Value: {value} found at incorrect level: {level} in the JSON DOM. Expected "
    "at level: {levels}"
)
WRONG_LIST_SIZE = (
    "Encountered list at unexpected size: {got} at level: {level} expected size: "
    "{wanted}"
)
WRONG_JSON_TYPE = "JSON Value: {value} Type: {got} is not of expected type: {wanted}"
NO_CONVERSION = "Conversion of JSON Value: {value} to type: {dtype}"
NOT_BASE64_DATA = "JSON Value: {value} not formatted correctly for base64 data"
INVALID_BASE64 = "Unable to base64 decode"

# REST classify and regress: `examples`, and results
NO_EXAMPLES = (
    "JSON Value: {value} When method is classify, key 'examples' is expected and was "
    "not found"
)
EXAMPLES_NOT_A_LIST = (
    "JSON Value: {value} Expecting 'examples' value to be an list/array"
)
EMPTY_EXAMPLES = "JSON Value: {value} 'examples' value is an empty array"
EXAMPLE_NOT_AN_OBJECT = "Example must be JSON object but got JSON {got}"
WRONG_FEATURE_TYPE = "Feature: {name} has element with unexpected JSON type: {got}"
MIXED_FEATURE = "Unexpected element type in feature: {name} expecting type: {wanted}"
UINT64_FEATURE = "Feature: {name} has uint64_t element. Only int64_t is supported."
NO_CLASSES = "Cannot convert empty ClassificationResults to JSON"
NO_NUMBERS = "Cannot convert empty RegressionResults to JSON"

# gRPC
NO_MODEL_SPEC = "Missing ModelSpec"
NO_METADATA_FIELD = "GetModelMetadataRequest must specify at least one metadata_field"
UNKNOWN_METADATA_FIELD = "Metadata field {field} is not supported"
INVALID_TENSOR = "tensor parsing error: {name}: {error}"
INVALID_TENSOR_SHAPE = "tensor parsing error: {name}: invalid or too large shape"

# signatures, and the tensors given to them
SIGNATURE_NOT_FOUND_REST = 'Serving signature name: "{name}" not found in signature def'
SIGNATURE_NOT_FOUND_EXAMPLES = "No signature was found with the name: {name}"
EMPTY_INPUT = "Input is empty."
WRONG_INPUTS = (
    "input size does not match signature: {got_count}!={wanted_count} "
    "len({{{got}}}) != len({{{wanted}}}). Sent extra: {{{extra}}}. Missing but "
    "required: {{{missing}}}."
)
MISSING_INPUT = (
    "Signature input alias: {name}(feed name: {feed}) not found in request and no "
    "default value provided. Inputs expected to be in the request {{{got}}}, or "
    "default input alias set: "
)
NOT_A_TENSOR = "FetchOutputs {name}: output index too large, must be < 0"
WRONG_TENSOR_DTYPE = "Expects arg[{index}] to be {wanted} but {got} is provided"
WRONG_TENSOR_SHAPE = (
    "Shape of tensor {name} [{got}] is not compatible with expected shape [{wanted}]."
)
OUTPUT_NOT_FOUND = (
    "output tensor alias not found in signature: {name} Outputs expected to be in the "
    "set {{{names}}}."
)
DUPLICATE_OUTPUT = "duplicate output tensor alias: {name}"
BATCH_TOO_LARGE = "Task size {size} is larger than maximum input batch size {limit}"
CONTEXT_TOO_LARGE = (
    "The context, once for each example, would take {size} bytes, more than {limit}"
)
BATCH_OF_SCALARS = "Batching Run() input tensors must have at least one dimension"
BATCH_OF_DIFFERENT_SIZES = (
    "Batching Run() input tensors must have equal 0th-dimension size"
)
BATCH_TO_SCALAR = "Batched output tensor has 0 dimensions"
BATCH_TO_OTHER_SIZE = (
    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
    "sizes of the input tensors"
)
BATCH_QUEUE_FULL = "The batch scheduling queue to which this task was submitted is full"

# Classify, Regress and MultiInference: signatures, outputs, tasks
NOT_ONE_INPUT = "Expected one input Tensor."
NOT_ONE_OUTPUT = "Expected one output Tensor."
NOT_TWO_OUTPUTS = "Expected one or two output Tensors, found {got}"
NO_CLASSIFICATION_INPUTS = "No classification inputs found in SignatureDef: {signature}"
NO_CLASSES_OR_SCORES = (
    "Expected classification signature outputs to contain at least one of "
    '"classes" or "scores". Signature was: {signature}'
)
NO_REGRESSION_INPUTS = "No regression inputs found in SignatureDef: {signature}"
NO_REGRESSION_OUTPUTS = "No regression outputs found in SignatureDef: {signature}"
NOT_BATCH_OF_CLASSES = "Expected Tensor shape: [batch_size num_classes] but got {shape}"
CLASSES_DTYPE = "Expected {name} Tensor of {wanted}. Got: {got}"
CLASSES_COUNT = "Expected {name} output batch size of {wanted}. Got: {got}"
CLASSES_AND_SCORES = (
    "Tensors class and score should match in dim_size(1). Got {got} vs. {other}"
)
NOT_BATCH_OF_VALUES = (
    "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got "
    "{shape}"
)
VALUES_COUNT = "Input batch size did not match output batch size: {wanted} vs. {got}"
VALUES_DTYPE = "Expected output Tensor of DT_FLOAT.  Got: {got}"
NO_TASK_MODEL = "Found ModelSpec with an empty model name."
SEVERAL_TASK_MODELS = (
    "All ModelSpecs in a MultiInferenceRequest must access the same model name."
)
SIGNATURE_TWICE = "Duplicate evaluation of signature: {name}"
SIGNATURE_NOT_FOUND_TASK = "Requested signature not found in model graph: {name}"

# models and labels
NO_MODEL_NAME = "ModelSpec has no name specified."
LABEL_NOT_FOUND = "Unrecognized servable version label: {label}"

# ModelServerConfig
NO_MODEL_CONFIG_LIST = (
    "ServerModelConfig type not supported by HandleReloadConfigRequest. Only "
    "ModelConfigList is currently supported"
)
NO_PLATFORM = (
    "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
    "ModelServerConfig::model_platform, model name is {name}"
)
TYPE_AND_PLATFORM = (
    "Illegal setting both ModelServerConfig::model_type (deprecated) and "
    "ModelServerConfig::model_platform, model name is {name}"
)
WRONG_TYPE = "ModelServerConfig::model_type choice {kind} not supported."
WRONG_PLATFORM = "Model {name} requests unsupported platform {platform}"
OTHER_PLATFORM = (
    "Illegal to change a model's platform. For model {name} platform was tensorflow "
    "and new platform requested is {platform}"
)
RELATIVE_PATH = (
    "Expected model {name} to have an absolute path or URI; got base_path()={path}"
)
EMPTY_VERSION_POLICY = "Specific version policy of {name} has no versions"
NAME_TWICE = "Illegal to list model {name} multiple times in config list"


# Errors with other codes


class LoadError(ValueError):
    """A SavedModel that can't be loaded: name of a gRPC status code, and a message."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def signature_not_found(name):
    return RequestError(
        "FAILED_PRECONDITION", f'Serving signature key "{shortened(name)}" not found.'
    )


def signature_not_found_rest(name):
    return invalid(SIGNATURE_NOT_FOUND_REST, name=name)


def model_not_found(name, version=None):
    name = shortened(name)
    wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
    return RequestError("NOT_FOUND", f"Servable not found for request: {wanted}")


def version_not_found(name, version):
    return RequestError(
        "NOT_FOUND", f"Could not find version {version} of model {shortened(name)}"
    )


def no_versions(name):
    text = f"Could not find any versions of model {shortened(name)}"
    return RequestError("NOT_FOUND", text)


def label_of_unavailable_version(name, version):
    return RequestError(
        "FAILED_PRECONDITION",
        f"Request to assign label to version {version} of model {shortened(name)}, "
        "which is not currently available for inference",
    )


def not_available(models):
    """Of models that a configuration adds: name, version, code and error of each."""
    rows = "".join(
        f"{{{{name: {name} version: {version}}} due to error: {code}: {error}}}, "
        for name, version, code, error in models
    )
    text = f"{len(models)} model(s) did not become available: {{{rows}}}"
    return RequestError("UNKNOWN", text)


def cancelled():
    return RequestError("CANCELLED", "Request cancelled by the client")


def stopping():
    return RequestError("UNAVAILABLE", "The server is stopping")


def deadline_exceeded():
    return RequestError("DEADLINE_EXCEEDED", "Timed out waiting for notification")


def queue_full():
    return RequestError("UNAVAILABLE", "The request queue is full")


def internal_error():
    return RequestError("INTERNAL", "Internal error, see the server log")
