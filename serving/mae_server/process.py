"""Runs the embedded server as a subprocess, for demos, benchmarks and tests."""

import contextlib
import re
import subprocess
import sys
import threading


@contextlib.contextmanager
def running(script, *flags, **options):
    """Runs `local_server.py` on free ports; yields REST and gRPC address, process."""
    command = [sys.executable, "-u", str(script), *map(str, flags)]
    process = subprocess.Popen(
        [*command, "--port=0", "--rest_api_port=0"],
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        for line in process.stdout:
            found = re.search(r"REST: http://(\S+)  gRPC: (\S+)", line)
            if found:
                break
        else:
            raise ValueError(f"Server failed to start: exit code {process.wait()}")
        # a full pipe that nobody reads would block the server
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield found[1], found[2], process
    finally:
        process.terminate()
        process.wait()
