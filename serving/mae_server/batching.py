"""Batching: merges concurrent requests into one run of the model.

Like TF Serving's batching session, by the same parameters: requests to a signature are
collected until they fill a run or the first one has waited long enough. Runs are not
padded.
"""

import os
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
    wrappers_pb2,
)

from mae_server import errors
from mae_server.errors import RequestError, invalid

# bundle_factory_util.cc, kBatchingParamsFilename
MODEL_FILE = "batching_params.pbtxt"
# session_bundle_config.proto, BatchingParameters: no module of Python's package has it
_FIELDS = {
    "max_batch_size": (1, "Int64Value"),
    "batch_timeout_micros": (2, "Int64Value"),
    "max_enqueued_batches": (3, "Int64Value"),
    "num_batch_threads": (4, "Int64Value"),
    "thread_pool_name": (5, "StringValue"),
    "allowed_batch_sizes": (6, None),
    "pad_variable_length_inputs": (7, None),
    "enable_large_batch_splitting": (8, "BoolValue"),
    "max_execution_batch_size": (9, "Int64Value"),
}


class BatchingParameters(NamedTuple):
    """How requests are merged; the defaults are those of TensorFlow's scheduler."""

    max_batch_size: int = 1000  # of a request
    max_execution_batch_size: int = 1000  # of a run
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    # of a version; in TF Serving of all models
    num_batch_threads: int = os.cpu_count() or 1


class BatchingOptions(NamedTuple):
    """Flags of the server: whether, and where a model's parameters come from."""

    common: BatchingParameters = BatchingParameters()
    per_model: bool = False

    def of_model(self, path):
        """Returns the parameters of a SavedModel, or `None` for no batching."""
        if not self.per_model:
            return self.common
        file = Path(path, MODEL_FILE)
        if not file.is_file():
            return None
        threads = self.common.num_batch_threads
        return read_parameters(file)._replace(num_batch_threads=threads)


def read_parameters(path):
    """Reads a text file of `BatchingParameters`; raises `ValueError` if it is none."""
    try:
        message = text_format.Parse(Path(path).read_text(), _message_class()())
    except (OSError, UnicodeDecodeError, text_format.ParseError) as error:
        raise ValueError(f"{path} must be BatchingParameters: {error}") from error
    given = {field.name: value for field, value in message.ListFields()}
    known = BatchingParameters._fields
    found = {name: given[name].value for name in known if name in given}
    most = found.get("max_batch_size", BatchingParameters().max_batch_size)
    if not message.enable_large_batch_splitting.value:
        found["max_execution_batch_size"] = most
    found.setdefault("max_execution_batch_size", most)
    # bundle_factory_util.cc, WrapSessionForBatching
    if message.allowed_batch_sizes and message.allowed_batch_sizes[-1] != most:
        raise ValueError(
            f"{path}: Last entry in allowed_batch_sizes must match max_batch_size; "
            f"last entry was {message.allowed_batch_sizes[-1]}; expected {most}"
        )
    parameters = BatchingParameters(**found)
    least = {"batch_timeout_micros": 0}
    for name, value in parameters._asdict().items():
        if value < least.get(name, 1):
            raise ValueError(f"{path}: {name} is too small. Received: {value}")
    return parameters


class Batcher:
    """Calls `run(fetches, feeds, seconds)` for several requests at once."""

    def __init__(self, run, parameters):
        self._run = run
        self._parameters = parameters
        self._threads = threading.BoundedSemaphore(parameters.num_batch_threads)
        self._lock = threading.Lock()
        self._open = {}  # batches that still take requests
        self._waiting = 0  # batches that no thread runs yet

    def run(self, fetches, feeds, call):
        """Returns the outputs for the rows of `feeds`, which may run with others."""
        sizes = {len(array) if np.ndim(array) else None for array in feeds.values()}
        if None in sizes:
            raise invalid(errors.BATCH_OF_SCALARS)
        if len(sizes) > 1:
            raise invalid(errors.BATCH_OF_DIFFERENT_SIZES)
        (size,) = sizes
        if size == 0:
            return self._run(fetches, feeds, call.seconds_left())
        if size > self._parameters.max_batch_size:
            limit = self._parameters.max_batch_size
            raise invalid(errors.BATCH_TOO_LARGE, size=size, limit=limit)
        step = self._parameters.max_execution_batch_size
        parts = []
        for begin in range(0, size, step) if size > step else [0]:
            part = {name: array[begin : begin + step] for name, array in feeds.items()}
            parts.append(self._run_part(fetches, part, min(size - begin, step), call))
        if len(parts) == 1:
            return parts[0]
        return {name: np.concatenate([p[name] for p in parts]) for name in fetches}

    def _run_part(self, fetches, feeds, size, call):
        rows = [(name, array.shape[1:]) for name, array in feeds.items()]
        key = (tuple(sorted(fetches.items())), tuple(sorted(rows)))
        batch, begin = self._join(key, feeds, size, call)
        if begin == 0:  # the first of its requests
            self._lead(key, batch, fetches)
        while not batch.done.wait(0.2):
            call.check()
        call.check()
        if batch.error is not None:
            raise batch.error
        return {
            name: values[begin : begin + size] for name, values in batch.outputs.items()
        }

    def _join(self, key, feeds, size, call):
        """Adds rows to a batch; returns it, and which of its rows is their first."""
        most = self._parameters.max_execution_batch_size
        with self._lock:
            batch = self._open.get(key)
            if batch is None or batch.size + size > most:
                if self._waiting == self._parameters.max_enqueued_batches:
                    raise RequestError("UNAVAILABLE", errors.BATCH_QUEUE_FULL)
                self._waiting += 1
                if batch is not None:
                    batch.full.set()  # it is run as it is
                batch = self._open[key] = _Batch()
            begin = batch.size
            batch.requests.append(feeds)
            batch.calls.append(call)
            batch.size += size
            if batch.size == most:
                batch.full.set()
            return batch, begin

    def _lead(self, key, batch, fetches):
        """Waits for other requests, and runs them with the first one."""
        end = time.monotonic() + self._parameters.batch_timeout_micros / 1e6
        while batch.is_wanted() and (left := end - time.monotonic()) > 0:
            if batch.full.wait(min(left, 0.2)):
                break
        # while other batches run, this one grows
        with self._threads:
            with self._lock:
                self._waiting -= 1
                if self._open.get(key) is batch:
                    del self._open[key]
            try:
                if not batch.is_wanted():
                    raise errors.deadline_exceeded()
                feeds = {
                    name: np.concatenate([one[name] for one in batch.requests])
                    for name in batch.requests[0]
                }
                outputs = self._run(fetches, feeds, batch.seconds_left())
                _check_rows(outputs, batch.size)
                batch.outputs = outputs
            except Exception as error:  # each of its requests is to know
                batch.error = error
            finally:
                batch.done.set()


class _Batch:
    """Requests that are run together."""

    def __init__(self):
        self.requests, self.calls, self.size = [], [], 0
        self.outputs = self.error = None
        self.full, self.done = threading.Event(), threading.Event()

    def is_wanted(self):
        """Whether anyone still waits for it."""
        return any(call.is_wanted() for call in self.calls)

    def seconds_left(self):
        """Returns the time of the request that may wait longest, `None` for any."""
        times = [call.seconds_left() for call in self.calls]
        return None if None in times else max(times)


def _check_rows(outputs, size):
    """Raises if outputs can't be cut into those of requests."""
    # batching_session.cc, SplitOutputTensors
    for values in outputs.values():
        if np.ndim(values) == 0:
            raise RequestError("FAILED_PRECONDITION", errors.BATCH_TO_SCALAR)
        if len(values) != size:
            raise RequestError("FAILED_PRECONDITION", errors.BATCH_TO_OTHER_SIZE)


def _message_class():
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
    )
    described = file.message_type.add(name="BatchingParameters")
    for name, (number, wrapper) in _FIELDS.items():
        field = described.field.add(name=name, number=number)
        field.label = field.LABEL_OPTIONAL
        if wrapper is not None:
            field.type = field.TYPE_MESSAGE
            field.type_name = f".google.protobuf.{wrapper}"
        elif name == "allowed_batch_sizes":
            field.type, field.label = field.TYPE_INT64, field.LABEL_REPEATED
        else:
            field.type = field.TYPE_BOOL
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    found = pool.FindMessageTypeByName("tensorflow.serving.BatchingParameters")
    return message_factory.GetMessageClass(found)
