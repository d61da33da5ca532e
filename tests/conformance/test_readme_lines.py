"""The README's lines that ask a server, as they are pasted."""

import os
import re
import subprocess
import sys

import numpy as np
from PIL import Image

from tests.conformance.calls import picture
from tests.scripts import ROOT

SECTION = (ROOT / "README.md").read_text().partition("## Serve and query")[2]


def run(command, folder, server):
    """Runs pasted lines, at the addresses of the server under test."""
    command = command.replace("localhost:8501", server.rest)
    grpc = f"--address={server.grpc}"
    command = re.sub(r"(client\.py .*--grpc)", rf"\1 {grpc}", command)
    rest = f"--address={server.rest}"
    command = re.sub(r"(client\.py (?!.*--grpc).*)", rf"\1 {rest}", command)
    command = command.replace("python serving", f"{sys.executable} {ROOT}/serving")
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "serving")},
    )


def test_lines_of_the_shell(server, tmp_path):
    for name in ("cat", "dog"):
        picture()[0].save(tmp_path / f"{name}.jpg")
    block = re.search(r"```bash\n(# features.*?)```", SECTION, re.DOTALL)[1]
    assert block.count("client.py") == 4 and "curl" in block
    finished = run(block, tmp_path, server)
    assert finished.returncode == 0, finished.stderr
    assert '"predictions"' in finished.stdout and "cat.jpg: loss" in finished.stdout
    assert np.load(tmp_path / "features.npz")["features"].shape == (2, 17, 128)
    assert Image.open(tmp_path / "picture.png").mode == "RGB"


def test_lines_of_python(server, tmp_path):
    for name in ("cat", "dog"):
        picture()[0].save(tmp_path / f"{name}.jpg")
    block = re.search(r"```python client\n(.*?)```", SECTION, re.DOTALL)[1]
    (tmp_path / "lines.py").write_text(block.replace("localhost:8501", server.rest))
    finished = run(f"{sys.executable} lines.py", tmp_path, server)
    assert finished.returncode == 0, finished.stderr
    assert Image.open(tmp_path / "picture.png").mode == "RGB"
