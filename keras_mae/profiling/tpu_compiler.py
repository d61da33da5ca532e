"""Compiles StableHLO for a TPU that need not be there. Run by `tpu_check`.

    python tpu_compiler.py v5e:4x4 [step.mlir]

The last line of standard output is the answer, as JSON: the devices of the topology;
or, given a program, the memory and FLOPs of one chip; or the compiler's refusal.

This is a file to run, in a process of its own: TensorFlow and JAX don't share one, the
compiler may end its process, and its settings are environment variables.
"""

import json
import os
import sys

ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # the compiler looks for no TPU, nor for the machine that would tell of one
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    # nothing holds a TPU: two compilers don't disturb each other
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_LOG_DIR": "disabled",
}


def find_devices(topology):
    """Asks the compiler for the devices of a topology.

    Args:
        topology: Name, such as `"v5e:4x4"`.

    Returns:
        A list of devices to compile for. They run nothing.
    """
    from jax.experimental import topologies

    # the two cores of a v4 chip work as one device, as TensorFlow has it
    options = {"chip_config_name": "megacore"} if topology.startswith("v4:") else {}
    return topologies.get_topology_desc(
        platform="tpu", topology_name=topology, **options
    ).devices


def compile_step(text, device):
    """Compiles a program for one device.

    Args:
        text: StableHLO, as TensorFlow writes it.
        device: One of `find_devices`.

    Returns:
        A dict: bytes of `arguments`, `outputs`, `temporaries`, `code`, and of what is
        `aliased` between arguments and outputs; `flops`.
    """
    import numpy as np
    from jax.interpreters.mlir import make_ir_context
    from jaxlib import xla_client
    from jaxlib.mlir import ir

    # TensorFlow's marked copy of an output, in words that this compiler knows
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
    """Prints the answer."""
    try:
        devices = find_devices(topology)
        answer = {"devices": len(devices)}
        if program is not None:
            with open(program) as file:
                answer = compile_step(file.read(), devices[0])
    except Exception as error:  # whatever it is, it is the answer
        answer = {"refusal": f"{error}" or type(error).__name__}
    print(json.dumps(answer))


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    main(*sys.argv[1:])
