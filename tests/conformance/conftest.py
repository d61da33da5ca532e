"""The server under test: the embedded one, or --endpoint and --rest-endpoint."""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import pytest

from mae_server.process import running
from tests.scripts import ROOT, environment

EMBEDDED = ROOT / "serving/local_server.py"

# installed by the extras serve and test
NEEDED = (
    "grpc",
    "grpc_health",
    "tensorflow_serving",
    "starlette",
    "uvicorn",
    "hypothesis",
)
if any(importlib.util.find_spec(name) is None for name in NEEDED):
    collect_ignore_glob = ["test_*.py"]


class Server(NamedTuple):
    """A server under test, and the folder of its models, where that is known."""

    grpc: str
    rest: str
    folder: Path | None


def pytest_addoption(parser):
    group = parser.getgroup("conformance")
    group.addoption("--endpoint", help="HOST:PORT of a gRPC server")
    group.addoption("--rest-endpoint", help="HOST:PORT of its REST API")
    group.addoption("--models", help="its folder, from tests/conformance/models.py")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--endpoint", None):
        return  # a server that runs is asked at once
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def server(request, tmp_path_factory):
    option = request.config.getoption
    grpc, rest = option("--endpoint", None), option("--rest-endpoint", None)
    if grpc and rest:
        folder = option("--models", None)
        yield Server(grpc, rest, folder and Path(folder))
        return
    from tests.conformance import models

    folder = models.build(tmp_path_factory.mktemp("conformance"))
    flags = [flag.format(folder=folder) for flag in models.FLAGS]
    # no answer depends on how busy the machine is
    flags += ["--file_system_poll_wait_seconds=0.2", "--rest_api_timeout_in_ms=300000"]
    with running(EMBEDDED, *flags, env=environment()) as (rest, grpc, process):
        yield Server(grpc, rest, folder)
    assert process.returncode == 0


@pytest.fixture(scope="session")
def caller(server):
    from tests.conformance.calls import Caller

    with Caller(server) as caller:
        yield caller
