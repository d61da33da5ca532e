"""What the tests of deployment files share: reading them, and TF Serving's flags."""

import re

import pytest
from google.protobuf import text_format

from tests.scripts import ROOT

SERVING = ROOT / "serving"
CONFIG = SERVING / "config"


def known_flags():
    """The flags of TF Serving's main.cc, with their types."""
    lines = (ROOT / "tests/fixtures/tf_serving_flags.txt").read_text().splitlines()
    return dict(line.split() for line in lines if not line.startswith("#"))


VALUES = {
    "bool": "true|false",
    "int": r"-?\d+",
    "float": r"\d+(\.\d+)?",
    "string": ".*",
}


def parse_flags(arguments):
    """Checks flags for TF Serving, names and types; returns them as a dict."""
    known = known_flags()
    flags = dict(re.fullmatch("--([a-z_]+)=(.*)", it).groups() for it in arguments)
    assert len(flags) == len(arguments)
    for name, value in flags.items():
        assert name in known, name
        assert re.fullmatch(VALUES[known[name]], value), (name, value)
        if value.startswith("/config/"):
            check_file(value)
    # it refuses the file without batching, and ignores per-model parameters
    if flags.get("enable_batching") != "true":
        assert not flags.get("batching_parameters_file")
    # every part is name=value, as gRPC takes it
    channel = flags.get("grpc_channel_arguments", "grpc.a_b=1")
    assert re.fullmatch(r"(grpc\.[a-z_0-9]+=\d+,?)+", channel)
    return flags


def check_server(flags):
    """Checks the flags of a server that reads config/models.config."""
    assert (flags["port"], flags["rest_api_port"]) == ("8500", "8501")
    assert flags["model_config_file"] == "/config/models.config"
    assert int(flags["model_config_file_poll_wait_seconds"]) > 0
    assert flags["monitoring_config_file"] == "/config/monitoring.config"
    # the canary of models.config needs it at startup
    assert flags["allow_version_labels_for_unavailable_models"] == "true"
    # batching: for models with batching_params.pbtxt, and those only
    assert flags["enable_per_model_batching_parameters"] == "true"
    assert flags["enable_profiler"] == "false"
    assert int(flags["rest_api_timeout_in_ms"]) == 30_000
    seconds = int(flags["load_retry_interval_micros"]) / 1e6
    assert 30 < int(flags["max_num_load_retries"]) * seconds < 300


def check_file(path):
    folder, _, name = path.removeprefix("/").partition("/")
    assert folder == "config" and (CONFIG / name).is_file(), path


def check_probe(arguments):
    interpreter, script, model = arguments
    assert interpreter == "bash"
    check_file(script)
    assert model == model_config((CONFIG / "models.config").read_text()).name


def read_yaml(name):
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((SERVING / name).read_text()))


def model_config(text):
    config = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    message = text_format.Parse(text, config.ModelServerConfig())
    (model,) = message.model_config_list.config
    return model


def interpolate(value, variables):
    """Fills `${NAME:-default}` in, as Compose does."""
    filled = re.sub(
        r"\$\{(\w+):-([^}]*)\}", lambda it: variables.get(it[1]) or it[2], value
    )
    assert "$" not in filled
    return filled
