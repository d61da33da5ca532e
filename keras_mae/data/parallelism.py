"""`num_parallel_calls` and prefetch sizes of the pipelines.

Fixed, as autotuning is off: see `pipeline_options`.
"""

import os

PARALLEL_CALLS = (
    len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count() or 1
)
PREFETCHED_BATCHES = 2
