"""What a server does with a request, whatever form it came in."""

import contextlib
import threading

import numpy as np

from mae_server.bundle import CLASSIFY_METHOD
from mae_server.errors import RequestError, invalid
from mae_server.versions import ModelConfig

DEFAULT_SIGNATURE = "serving_default"


class Service:
    """TF Serving's operations on arrays, with its checks and messages.

    Args:
        models: A `Models`.
        threads: Int, the most requests that are answered at the same time.
        max_enqueued: Int, the most requests that wait meanwhile.
        max_batch_size: Int, the most images a request may hold.

    Example:

    ```python
    service = Service(models=None, threads=2, max_enqueued=10)
    assert service.most_threads > 12
    ```
    """

    def __init__(self, models, threads=4, max_enqueued=100, max_batch_size=1024):
        self.models = models
        # each request waits in a thread; some are left to say that no more may wait
        self.most_threads = threads + max_enqueued + 4
        self._places = threading.BoundedSemaphore(threads + max_enqueued)
        self._running = threading.BoundedSemaphore(threads)
        self._max_batch_size = max_batch_size

    def predict(self, spec, signature_name, inputs, outputs=()):
        """Runs a signature.

        Args:
            spec: Tuple `(name, version, label)`, the last two perhaps `None`.
            signature_name: Str, or empty for `serving_default`.
            inputs: Dict from input name to array, or a function that makes it of the
                signature.
            outputs: Names of the outputs to answer; all by default.

        Returns:
            A tuple: the version, int; the signature's name; a dict from output name
            to array.

        Raises:
            RequestError: For whatever is wrong with the request.
        """
        name = signature_name or DEFAULT_SIGNATURE
        with self._place(), self.models.use(*spec) as (version, bundle):
            signature = bundle.signatures.get(name)
            if callable(inputs):
                if signature is None:
                    raise invalid(
                        f'Serving signature name: "{name}" not found in signature def'
                    )
                inputs = inputs(signature)
            if signature is None:
                raise RequestError(
                    "FAILED_PRECONDITION", f'Serving signature key "{name}" not found.'
                )
            _check_filter(outputs, signature)
            self._check_batch(inputs)
            return version, name, bundle.run(name, inputs, list(outputs))

    def classify(self, spec, signature_name, examples):
        """Runs a signature of TF Serving's Classify API.

        Args:
            spec: As for `predict`.
            signature_name: Str, or empty for `serving_default`.
            examples: List of serialized `tf.train.Example`.

        Returns:
            A tuple: the version, int; the signature's name; a list with, for each
            example, a list of `(label, score)`.

        Raises:
            RequestError: For whatever is wrong with the request.
        """
        name = signature_name or DEFAULT_SIGNATURE
        with self._place(), self.models.use(*spec) as (version, bundle):
            if name not in bundle.signatures:
                raise invalid(f"No signature was found with the name: {name}")
            method = bundle.signatures[name].method_name
            if method != CLASSIFY_METHOD:
                raise invalid(
                    "Expected classification signature method_name to be "
                    f"{CLASSIFY_METHOD}. Was: {method}"
                )
            if not examples:
                raise invalid("Input is empty.")
            inputs = {"inputs": np.array(examples, object)}
            self._check_batch(inputs)
            found = bundle.run(name, inputs)
            pairs = zip(found["classes"], found["scores"], strict=True)
            return version, name, [_scored(*pair) for pair in pairs]

    def metadata(self, spec):
        """Describes a model's signatures.

        Args:
            spec: As for `predict`.

        Returns:
            A tuple: the version, int; a dict from signature name to `SignatureDef`.

        Raises:
            RequestError: If there is no such model.
        """
        with self.models.use(*spec) as (version, bundle):
            return version, bundle.signatures

    def reload(self, config):
        """Serves what a configuration lists, from now on; an error changes nothing.

        Args:
            config: A `ModelServerConfig` message.

        Raises:
            RequestError: If it can't be served.
        """
        self.models.configure(read_config(config))

    @contextlib.contextmanager
    def _place(self):
        """Waits for its turn, if there is a place left to wait."""
        if not self._places.acquire(blocking=False):
            raise RequestError("UNAVAILABLE", "The request queue is full")
        try:
            with self._running:
                yield
        finally:
            self._places.release()

    def _check_batch(self, inputs):
        size = max((len(a) for a in inputs.values() if np.ndim(a)), default=0)
        if size > self._max_batch_size:
            raise invalid(
                f"Task size {size} is larger than maximum input batch size "
                f"{self._max_batch_size}"
            )


def _labelled(labels, scores):
    labels = [label.decode() for label in labels]
    return list(zip(labels, scores, strict=True))


def _scored(labels, scores):
    labels = [label.decode() for label in labels]
    return list(zip(labels, scores, strict=True))


def _check_filter(outputs, signature):
    for index, name in enumerate(outputs):
        if name not in signature.outputs:
            known = ",".join(sorted(signature.outputs))
            raise invalid(
                f"output tensor alias not found in signature: {name} Outputs expected "
                f"to be in the set {{{known}}}."
            )
        if name in outputs[:index]:
            raise invalid(f"duplicate output tensor alias: {name}")


def read_config(config):
    """Reads TF Serving's configuration of models.

    Args:
        config: A `ModelServerConfig` message.

    Returns:
        A list of `ModelConfig`.

    Raises:
        RequestError: If it is not a list of TensorFlow models.

    Example:

    ```python
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    text = "model_config_list { config { name: 'mae' base_path: '/models/mae' } }"
    message = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    assert read_config(message)[0].name == "mae"
    ```
    """
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. "
            "Only ModelConfigList is currently supported"
        )
    return [_model_config(model) for model in config.model_config_list.config]


def _model_config(model):
    platform = model.model_platform or "tensorflow"
    if platform != "tensorflow":
        raise invalid(f"model_platform must be tensorflow. Received: {platform}")
    policy = model.model_version_policy
    versions, latest = None, 1
    if policy.HasField("all"):
        versions = ()
    elif policy.HasField("specific"):
        versions = tuple(policy.specific.versions)
        if not versions:
            raise invalid(f"Specific version policy of {model.name} has no versions")
    elif policy.HasField("latest"):
        latest = max(policy.latest.num_versions, 1)
    return ModelConfig(
        model.name, model.base_path, versions, latest, dict(model.version_labels)
    )
