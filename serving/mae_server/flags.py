"""Flags of TF Serving's server: those that do nothing here, and how bools are given."""

import re
import sys

# tensorflow_serving/model_servers/main.cc
WITHOUT_EFFECT = frozenset(
    {
        "enable_profiler",
        "enable_signature_method_name_check",
        "flush_filesystem_caches",
        "grpc_max_threads",
        "grpc_socket_path",
        "load_retry_interval_micros",
        "max_num_load_retries",
        "mixed_precision",
        "num_load_threads",
        "num_tflite_interpreters_per_pool",
        "num_tflite_pools",
        "num_unload_threads",
        "per_process_gpu_memory_fraction",
        "platform_config_file",
        "prefer_tflite_model",
        "remove_unused_fields_from_bundle_metagraph",
        "rest_api_num_threads",
        "skip_initialize_tpu",
        "ssl_config_file",
        "tensorflow_session_config_file",
        "thread_pool_factory_config_file",
        "use_alts_credentials",
        "xla_cpu_compilation_enabled",
        "xla_gpu_compilation_enabled",
    }
)


def for_this_server(arguments, bools):
    """Returns a command line without the flags above, and bools as `--[no-]NAME`."""
    kept = []
    for word in arguments:
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in WITHOUT_EFFECT:
            print(f"Warning: --{name} does nothing in this server", file=sys.stderr)
        elif word.startswith("--") and name in bools and value in ("true", "false"):
            kept.append(f"--{name}" if value == "true" else f"--no-{name}")
        else:
            kept.append(word)
    return kept


def channel_arguments(text, ints=()):
    """Parses `name=value,...` to a dict: ints of 32 bits are ints, others texts."""
    pairs = [word.partition("=") for word in text.split(",") if word]
    if not all(name and equals for name, equals, _ in pairs):
        raise ValueError(
            f"grpc_channel_arguments must be name=value,... Received: {text!r}"
        )
    arguments = {name: _int_or_text(value) for name, _, value in pairs}
    for name in set(ints) & set(arguments):
        if not isinstance(arguments[name], int):
            raise ValueError(
                f"grpc_channel_arguments: {name} must be an int of 32 bits. "
                f"Received: {arguments[name]!r}"
            )
    return arguments


def _int_or_text(value):
    # server.cc of TF Serving; gRPC ignores arguments of another type than it wants
    if not re.fullmatch(r"[+-]?[0-9]{1,10}", value):
        return value
    number = int(value)
    return number if -(2**31) <= number < 2**31 else value
