"""TF Serving's operations on arrays, for REST and gRPC alike."""

import contextlib
import threading

import numpy as np

from mae_server import errors
from mae_server.bundle import CLASSIFY_METHOD
from mae_server.errors import invalid
from mae_server.versions import ModelConfig

DEFAULT_SIGNATURE = "serving_default"


class Service:
    """Runs requests on `Models`, with TF Serving's checks and error messages.

    `threads` requests run at the same time, `max_enqueued` more wait, and others are
    refused; a request holds at most `max_batch_size` images.
    """

    def __init__(self, models, threads=4, max_enqueued=100, max_batch_size=1024):
        self.models = models
        # each request waits in a thread; four more refuse those that may not wait
        self.max_threads = threads + max_enqueued + 4
        self._slots = threading.BoundedSemaphore(threads + max_enqueued)
        self._running = threading.BoundedSemaphore(threads)
        self._max_batch_size = max_batch_size

    def predict(self, spec, signature_name, inputs, outputs=()):
        """Runs a signature; returns version, signature name and a dict of arrays.

        `spec` is `(name, version, label)`; `inputs` a dict of arrays, or a function
        that returns one for the signature; `outputs` names those to compute.
        """
        name = signature_name or DEFAULT_SIGNATURE
        with self._slot(), self.models.use(*spec) as (version, bundle):
            signature = bundle.signatures.get(name)
            if callable(inputs):
                if signature is None:
                    raise invalid(errors.SIGNATURE_NOT_FOUND_REST, name=name)
                inputs = inputs(signature)
            if signature is None:
                raise errors.signature_not_found(name)
            _check_filter(outputs, signature)
            self._check_batch(inputs)
            return version, name, bundle.run(name, inputs, list(outputs))

    def classify(self, spec, signature_name, examples):
        """Runs a Classify signature on serialized `tf.train.Example`s.

        Returns version, signature name, and `(label, score)` pairs for each example.
        """
        name = signature_name or DEFAULT_SIGNATURE
        with self._slot(), self.models.use(*spec) as (version, bundle):
            if name not in bundle.signatures:
                raise invalid(errors.SIGNATURE_NOT_FOUND_CLASSIFY, name=name)
            method = bundle.signatures[name].method_name
            if method != CLASSIFY_METHOD:
                raise invalid(
                    errors.NOT_A_CLASSIFY_SIGNATURE, wanted=CLASSIFY_METHOD, got=method
                )
            if not examples:
                raise invalid(errors.EMPTY_INPUT)
            inputs = {"inputs": np.array(examples, object)}
            self._check_batch(inputs)
            found = bundle.run(name, inputs)
            pairs = zip(found["classes"], found["scores"], strict=True)
            return version, name, [_scored(*pair) for pair in pairs]

    def metadata(self, spec):
        """Returns the version, and its `SignatureDef`s by name."""
        with self.models.use(*spec) as (version, bundle):
            return version, bundle.signatures

    def reload(self, config):
        """Serves what a `ModelServerConfig` lists; an error changes nothing."""
        self.models.configure(read_config(config))

    @contextlib.contextmanager
    def _slot(self):
        """Waits for a free thread; raises if the queue is full."""
        if not self._slots.acquire(blocking=False):
            raise errors.queue_full()
        try:
            with self._running:
                yield
        finally:
            self._slots.release()

    def _check_batch(self, inputs):
        size = max((len(a) for a in inputs.values() if np.ndim(a)), default=0)
        if size > self._max_batch_size:
            raise invalid(errors.BATCH_TOO_LARGE, size=size, limit=self._max_batch_size)


def _scored(labels, scores):
    labels = [label.decode() for label in labels]
    return list(zip(labels, scores, strict=True))


def _check_filter(outputs, signature):
    for index, name in enumerate(outputs):
        if name not in signature.outputs:
            known = ",".join(sorted(signature.outputs))
            raise invalid(errors.OUTPUT_NOT_FOUND, name=name, names=known)
        if name in outputs[:index]:
            raise invalid(errors.DUPLICATE_OUTPUT, name=name)


def read_config(config):
    """Converts a `ModelServerConfig` to a list of `ModelConfig`."""
    if config.WhichOneof("config") != "model_config_list":
        raise invalid(errors.NO_MODEL_CONFIG_LIST)
    return [_model_config(model) for model in config.model_config_list.config]


def _model_config(model):
    platform = model.model_platform or "tensorflow"
    if platform != "tensorflow":
        raise invalid(errors.WRONG_PLATFORM, platform=platform)
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
