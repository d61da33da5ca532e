"""Writes batching_params.pbtxt, TF Serving's batching of requests to one model."""

from pathlib import Path

# bundle_factory_util.cc of TF Serving reads it, a BatchingParameters message, with
# --enable_batching and --enable_per_model_batching_parameters
BATCHING_PATH = Path("batching_params.pbtxt")
_PARAMETERS = """\
# Images of the largest request; it is split into runs.
max_batch_size { value: 1024 }
enable_large_batch_splitting { value: true }
# Images of a run. No allowed_batch_sizes: runs are not padded.
max_execution_batch_size { value: 8 }
# The longest wait for other requests. With 0 those merge that come while others run.
batch_timeout_micros { value: 2000 }
# Further requests are refused: UNAVAILABLE, 503.
max_enqueued_batches { value: 256 }
"""


def write_batching(folder):
    """Writes the parameters of batching into a SavedModel."""
    Path(folder, BATCHING_PATH).write_text(_PARAMETERS)
