"""Graceful shutdown within --grace_seconds, whatever threads still do."""

import os
import sys
import threading
import time

# for threads to notice that their requests have ended, after the grace
_NOTICE_SECONDS = 3


class Stopping:
    """Ends a gRPC server and, if the process outlives the grace, the process."""

    def __init__(self, grpc_server, grace_seconds):
        self._server = grpc_server
        self._seconds = grace_seconds
        self._begun = threading.Event()

    def begin(self):
        """Refuses new requests and gives those in hand their grace; returns at once."""
        if not self._begun.is_set():
            self._begun.set()
            # a signal's handler must not wait for locks
            threading.Thread(target=self._stop, name="stopping", daemon=True).start()

    def _stop(self):
        self._server.stop(self._seconds)  # returns at once
        time.sleep(self._seconds + _NOTICE_SECONDS)
        # a run of TensorFlow can't be stopped
        print("Requests were cut off after --grace_seconds", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)
