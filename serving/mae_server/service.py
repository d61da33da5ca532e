"""TF Serving's operations on arrays, for REST and gRPC alike."""

import contextlib
import re
import threading

import numpy as np
from tensorflow_serving.config import model_server_config_pb2

from mae_server import errors, inference
from mae_server.calls import Call, Calls
from mae_server.errors import invalid
from mae_server.metrics import Metrics
from mae_server.tensor_protos import examples_of
from mae_server.versions import ModelConfig


class Service:
    """Runs requests on `Models`, with TF Serving's checks and error messages."""

    def __init__(self, models, threads=4, max_enqueued=100, max_batch_size=1024):
        self.models = models
        self.metrics = Metrics()
        self.in_hand = Calls()  # of gRPC, whose server knows only connections
        # each request waits in a thread; four more refuse those that may not wait
        self.max_threads = threads + max_enqueued + 4
        # the others are refused
        self._slots = threading.BoundedSemaphore(threads + max_enqueued)
        self._running = threading.BoundedSemaphore(threads)
        self.max_batch_size = max_batch_size

    def predict(
        self,
        spec,
        signature_name,
        read,
        outputs=(),
        call=None,
        not_found=errors.signature_not_found,
    ):
        """Runs a signature, in a `slot`; returns version, name and a dict of arrays."""
        # `spec` is `(name, version, label)`; `read(signature)` returns the inputs
        name = signature_name or inference.DEFAULT_SIGNATURE
        with self.models.use(*spec) as (version, bundle):
            if name not in bundle.signatures:
                raise not_found(name)
            signature = bundle.signatures[name]
            # only now, so that nothing is unpacked for a signature that is not there
            inputs = read(signature)
            _check_filter(outputs, signature)
            self._check_batch(inputs)
            with self.metrics.runtime(spec[0], "Predict"):
                found = bundle.run(name, inputs, list(outputs), call or Call())
            return version, name, found

    def classify(self, spec, signature_name, examples, call=None):
        """Returns version, signature, and `(label, score)` pairs for each example."""
        # "" or 0 where a signature has scores or classes alone
        return self._infer(inference.CLASSIFY, spec, signature_name, examples, call)

    def regress(self, spec, signature_name, examples, call=None):
        """Returns version, signature name, and a float32 for each example."""
        return self._infer(inference.REGRESS, spec, signature_name, examples, call)

    def multi_inference(self, tasks, examples, call=None):
        """Runs Classify and Regress signatures of a model on the same examples."""
        # each task is `(spec, signature_name, method)`
        spec = tasks[0][0] if tasks else ("", None, None)
        with self.models.use(*spec) as (version, bundle):
            wanted = _check_tasks(tasks, bundle.signatures)
            results = [
                (name, self._run(bundle, name, method, outputs, examples, call))
                for name, method, outputs in wanted
            ]
            self.metrics.examples(spec[0], len(examples))
            return version, results

    def _infer(self, method, spec, signature_name, examples, call):
        name = signature_name or inference.DEFAULT_SIGNATURE
        with self.models.use(*spec) as (version, bundle):
            if name not in bundle.signatures:
                raise invalid(errors.SIGNATURE_NOT_FOUND_EXAMPLES, name=name)
            outputs = inference.outputs_of(method, bundle.signatures[name])
            api = "Classify" if method == inference.CLASSIFY else "Regress"
            with self.metrics.runtime(spec[0], api):
                found = self._run(bundle, name, method, outputs, examples, call)
            return version, name, found

    def _run(self, bundle, name, method, outputs, examples, call):
        if not examples:
            raise invalid(errors.EMPTY_INPUT)
        inputs = {"inputs": np.array(examples, object)}
        self._check_batch(inputs)
        found = bundle.run(name, inputs, outputs, call or Call())
        return inference.read(method, found, len(examples))

    def examples_of(self, message):
        """Returns the serialized examples of an `Input`."""
        return examples_of(message, self.max_batch_size)

    def metadata(self, spec):
        """Returns the version, and its `SignatureDef`s by name."""
        with self.models.use(*spec) as (version, bundle):
            return version, bundle.signatures

    def reload(self, config):
        """Serves what a `ModelServerConfig` lists; an error changes nothing."""
        self.models.configure(read_config(config, self.models.names()))

    @contextlib.contextmanager
    def slot(self, call):
        """Waits for a free thread; raises if the queue is full, or nobody waits."""
        if not self._slots.acquire(blocking=False):
            raise errors.queue_full()
        try:
            call.acquire(self._running)
            try:
                yield
            finally:
                self._running.release()
        finally:
            self._slots.release()

    def _check_batch(self, inputs):
        size = max((len(a) for a in inputs.values() if np.ndim(a)), default=0)
        errors.check_batch_size(size, self.max_batch_size)


def _check_tasks(tasks, signatures):
    """Returns `(signature_name, method, outputs)` of each task of MultiInference."""
    wanted = {}
    for (model, _, _), signature_name, method in tasks:
        name = signature_name or inference.DEFAULT_SIGNATURE
        if not model:
            raise invalid(errors.NO_TASK_MODEL)
        if model != tasks[0][0][0]:
            raise invalid(errors.SEVERAL_TASK_MODELS)
        if name in wanted:
            raise invalid(errors.SIGNATURE_TWICE, name=name)
        if name not in signatures:
            raise invalid(errors.SIGNATURE_NOT_FOUND_TASK, name=name)
        wanted[name] = (name, method, inference.outputs_of(method, signatures[name]))
    return list(wanted.values())


def _check_filter(outputs, signature):
    for index, name in enumerate(outputs):
        if name not in signature.outputs:
            known = ",".join(sorted(signature.outputs))
            raise invalid(errors.OUTPUT_NOT_FOUND, name=name, names=known)
        if name in outputs[:index]:
            raise invalid(errors.DUPLICATE_OUTPUT, name=name)


def read_config(config, served=()):
    """Converts a `ModelServerConfig` to a list of `ModelConfig`."""
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(errors.NO_MODEL_CONFIG_LIST)
    return [_model_config(model, served) for model in config.model_config_list.config]


def _check_model(model, served):
    """Raises on what TF Serving refuses (`tensorflow_serving/model_servers`)."""
    # server_core.cc, UriIsRelativePath
    if not re.match(r"/|[a-zA-Z][0-9a-zA-Z.]*://", model.base_path):
        raise invalid(errors.RELATIVE_PATH, name=model.name, path=model.base_path)
    # server_core.cc, GetPlatform and CreateStoragePathRoutes
    platform, kind = model.model_platform, model.model_type
    if kind and platform:
        raise invalid(errors.TYPE_AND_PLATFORM, name=model.name)
    if kind not in (0, model_server_config_pb2.TENSORFLOW):
        raise invalid(errors.WRONG_TYPE, kind=kind)
    if not kind and not platform:
        raise invalid(errors.NO_PLATFORM, name=model.name)
    if platform not in ("", "tensorflow"):
        if model.name in served:  # ValidateNoModelsChangePlatforms
            raise invalid(errors.OTHER_PLATFORM, name=model.name, platform=platform)
        raise invalid(errors.WRONG_PLATFORM, name=model.name, platform=platform)


def _model_config(model, served):
    _check_model(model, served)
    policy = model.model_version_policy
    versions, latest = None, 1
    if policy.HasField("all"):
        versions = ()
    elif policy.HasField("specific"):
        versions = tuple(policy.specific.versions)
        if not versions:
            raise invalid(errors.EMPTY_VERSION_POLICY, name=model.name)
    elif policy.HasField("latest"):
        latest = max(policy.latest.num_versions, 1)
    return ModelConfig(
        model.name, model.base_path, versions, latest, dict(model.version_labels)
    )
