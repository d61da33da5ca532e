"""Compiles StableHLO for a TPU, without a TPU. Run by `tpu_check` as a subprocess.

    python tpu_compiler.py v5e:4x4 [step.mlir]

The last line of standard output is JSON: the number of devices of the topology; with a
program, memory and FLOPs of one chip; or the compiler's error. It has a process of its
own because TensorFlow and JAX don't share one, the compiler may crash, and its settings
are environment variables.
"""

import json
import os
import sys

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # no search for a TPU, nor for a cloud metadata server
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    # several compilers at the same time: none of them holds a TPU
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}


def _find_devices(topology):
    """Devices of a topology such as `"v5e:4x4"`, to compile for; they run nothing."""
    from jax.experimental import topologies

    # the two cores of a v4 chip work as one device, as TensorFlow has it
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    return topologies.get_topology_desc(
        platform="tpu", topology_name=topology, **options
    ).devices


def compile_step(text, device):
    """Memory in bytes and FLOPs of a StableHLO program compiled for one device."""
    import numpy as np
    from jax.interpreters.mlir import make_ir_context
    from jaxlib import xla_client
    from jaxlib.mlir import ir

    # this compiler does not know the operation TensorFlow copies outputs by
    text = text.replace("mhlo.copy", "stablehlo.optimization_barrier")
    with make_ir_context():
        module = ir.Module.parse(text)
    options = xla_client.CompileOptions()
    options.num_replicas = options.num_partitions = 1
    options.device_assignment = xla_client.DeviceAssignment.create(
        np.array([[device.id]], np.int32)
    )
    devices = xla_client.DeviceList((device,))
    executable = device.client.compile(module, devices, options)
    memory = executable.get_compiled_memory_stats()
    costs = executable.cost_analysis()
    return {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "flops": (costs[0] if isinstance(costs, list) else costs)["flops"],
    }


def main(topology, program=None):
    """Prints the answer as JSON."""
    try:
        devices = _find_devices(topology)
        answer = {"devices": len(devices)}
        if program is not None:
            with open(program) as file:
                answer = compile_step(file.read(), devices[0])
    except Exception as error:  # any error is the answer
        answer = {"error": f"{error}" or type(error).__name__}
    print(json.dumps(answer))


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    main(*sys.argv[1:])
