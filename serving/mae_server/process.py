"""The embedded server in a process of its own, for what asks it and then leaves."""

import contextlib
import re
import subprocess
import sys
import threading
from pathlib import Path  # noqa: F401, for the example


@contextlib.contextmanager
def running(script, *flags, **options):
    """Runs a server's script until the block ends.

    Args:
        script: Path of `serving/local_server.py`.
        *flags: Its flags; both ports are free ones.
        **options: Those of `subprocess.Popen`.

    Yields:
        A tuple: REST address and gRPC address, `"host:port"` each, and the
        `subprocess.Popen`.

    Raises:
        ValueError: If it ends before it serves.

    Example:

    ```python
    code = "print('REST: http://127.0.0.1:8501  gRPC: 127.0.0.1:8500')"
    Path("server.py").write_text(code)
    with running("server.py") as (rest, grpc, _):
        assert rest.endswith(":8501") and grpc.endswith(":8500")
    ```
    """
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
            raise ValueError(f"the server ended with exit code {process.wait()}")
        # a pipe that nobody reads would stop it once it is full
        threading.Thread(target=process.stdout.read, daemon=True).start()
        yield found[1], found[2], process
    finally:
        process.terminate()
        process.wait()
