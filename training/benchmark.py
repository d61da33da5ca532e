"""Benchmark training, encoding and reconstruction, alone or against transformers.

Run: python training/benchmark.py --mode=pretrain-step --preset=mae_base
     python training/benchmark.py --mode=encode --against=huggingface

Each side is a process of its own, and they take turns, one step each, so that other
load on the machine slows all alike. `--against=huggingface` is transformers' ViTMAE on
PyTorch with SDPA, autocast for bfloat16, the same image size, mask ratio and AdamW;
`huggingface-compiled` is the same with torch.compile; `plain` is this package without
`--quantize`, `--residual_dtype` and `--engine`, and `savedmodel`, `openvino`, `litert`
and `onnx` are the encoder in these engines; several go with commas between.
`--accumulation_steps` and `--rematerialize` are of our side alone. MFU is
relative to a GPU's published FLOP/s, or to those of a large matrix product in the same
process; that of transformers is relative to our side's. On a GPU, float32 products are
TF32 on all sides, and peak memory is the GPU's; on a CPU it is the resident memory of
the process.
"""

import keras_mae  # first: it imports TensorFlow quietly

# isort: split
import contextlib
import dataclasses
import functools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path

import keras
import numpy as np

from keras_mae.presets import preset_sizes
from keras_mae.profiling import paired_runs
from keras_mae.profiling.costs import forward_flops, measured_flops, peak_flops
from keras_mae.profiling.paired_runs import Worker, compare, take_turns
from keras_mae.profiling.timed_steps import make_step
from keras_mae.utils.flags import check_at_least, flag, run_script

MODES = ("pretrain-step", "encode", "reconstruct", "finetune-step", "input")
ENGINES = ("keras", "savedmodel", "openvino", "litert", "onnx")
# flags of a model that Keras runs, which the other engines can't follow
KERAS_FLAGS = ("xla", "replicas", "rematerialize", "residual_dtype", "quantize")
PEERS = ("huggingface", "huggingface-compiled", "plain", *ENGINES[1:])


@dataclasses.dataclass
class BenchmarkConfig:
    """Flags of this script."""

    mode: str = flag("what to measure", "pretrain-step", choices=MODES)
    preset: str = flag("model size, as for pretrain.py", "mae_base")
    batch_size: int = flag("images per step", 16)
    mask_ratio: float = flag("fraction of patches to mask", 0.75)
    precision: str = flag(
        "Keras dtype policy",
        "float32",
        choices=("float32", "mixed_bfloat16", "bfloat16"),
    )
    xla: str = flag("XLA compilation (jit_compile)", "auto", ("auto", "on", "off"))
    backend: str = flag("Keras backend", "tensorflow", ("tensorflow", "jax", "torch"))
    replicas: int = flag("logical CPU devices of a MirroredStrategy; 1: none", 1)
    rematerialize: bool = flag("gradient checkpointing of transformer blocks", False)
    residual_dtype: str | None = flag(
        "dtype of the residual connections; default: that of --precision",
        None,
        ("float32",),
    )
    engine: str = flag(
        "what runs --mode=encode: Keras, or the exported encoder in another runtime",
        "keras",
        ENGINES,
    )
    quantize: str | None = flag(
        "quantize the dense layers, of --mode=encode or reconstruct; default: no",
        None,
        ("int8", "int4", "float8"),
    )
    accumulation_steps: int = flag("gradient accumulation steps", 1)
    image_size: int | None = flag("image size in pixels; default: the preset's", None)
    depth: int | None = flag("encoder blocks; default: the preset's", None)
    warmup: int = flag("steps before measuring", 2)
    repeats: int = flag("steps to measure", 10)
    against: str | None = flag(
        f"what to compare with, separated by commas: {', '.join(PEERS)}", None
    )
    dataset: str = flag("dataset of --mode=input, as for pretrain.py", "photos")
    out: str | None = flag("JSON file to write the results to", None)
    worker: bool = flag("internal: run steps for a parent process", False)


def make_our_step(config):
    """Returns the step of our side, and its FLOPs."""
    if config.mode == "input":
        return make_input_step(config), 0.0
    if config.engine != "keras":
        return make_engine_step(config)
    overrides = {"dtype": config.precision, "mask_ratio": config.mask_ratio}
    overrides["rematerialize"] = config.rematerialize
    for name in ("image_size", "depth", "residual_dtype", "quantize"):
        if getattr(config, name) is not None:
            overrides[name] = getattr(config, name)
    return make_step(
        config.mode,
        config.preset,
        config.batch_size,
        xla={"on": True, "off": False}.get(config.xla, config.xla),
        accumulation_steps=config.accumulation_steps,
        replicas=config.replicas,
        **overrides,
    )


def make_engine_step(config):
    """Returns the step of an exported encoder, and its FLOPs."""
    sizes = {"dtype": config.precision}
    for name in ("image_size", "depth"):
        if getattr(config, name) is not None:
            sizes[name] = getattr(config, name)
    encoder = keras_mae.MAEEncoder.from_preset(config.preset, **sizes)
    shape = (config.batch_size, *encoder.image_size, encoder.num_channels)
    pixels = np.random.default_rng(0).standard_normal(shape).astype("float32")
    encode = load_exported(encoder, config.engine)
    flops = config.batch_size * forward_flops(encoder)
    return lambda: float(np.max(encode(pixels))), flops


def load_exported(encoder, engine):
    """Exports an encoder and loads it into an engine; returns a function of pixels."""
    # they import TensorFlow, which JAX needn't hold
    from keras_mae.export import export_runtime, export_savedmodel, load_runtime

    processor = keras_mae.MAEImageProcessor(encoder.image_size)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "1")
        if engine == "savedmodel":
            import tensorflow as tf

            export_savedmodel(encoder, processor, path, warmup_batch_sizes=())
            loaded = tf.saved_model.load(path)  # which its signatures don't keep
            name = "features_from_pixels"
            return lambda x: loaded.signatures[name](pixels=tf.constant(x))["features"]
        export_runtime(encoder, processor, path, engine)
        encode = load_runtime(path)["encode"]
    return lambda x: encode(pixels=x)["features"]


def make_input_step(config):
    """Returns a function that reads a batch of the training pipeline."""
    from keras_mae import data

    source = data.load_source(config.dataset)
    size = config.image_size or preset_sizes(config.preset)["image_size"]
    processor = keras_mae.MAEImageProcessor(
        size, source.mean, source.std, resample="bicubic"
    )
    batches = iter(data.training_pipeline(source, processor, config.batch_size, seed=0))
    return lambda: next(batches)


def find_peak_flops(precision):
    """Returns the peak FLOP/s: known GPUs' published ones, else a large product's."""
    if keras.backend.backend() == "torch":
        return measured_flops(precision)
    strategy = None
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        strategy = tf.distribute.get_strategy()
    return peak_flops(strategy, precision)


def work(config):
    """Runs our steps in a worker process."""
    begin = time.perf_counter()
    settings = {}
    if keras.backend.backend() == "torch":
        settings["float32_matmul_precision"] = paired_runs.use_tf32()
    step, flops = make_our_step(config)
    residuals = config.residual_dtype and f"{config.residual_dtype} residuals"
    engine = config.engine if config.engine != "keras" else None
    variant = [name for name in (config.quantize, residuals, engine) if name]
    about = {
        "library": ", ".join(["keras_mae", *variant]),
        "keras": keras.__version__,
        "backend": keras.backend.backend(),
        **settings,
        "build": time.perf_counter() - begin,
        "flops": flops,
        "peak_flops": find_peak_flops(config.precision) if flops else 0.0,
    }
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        about["tensorflow"] = tf.__version__
    # the other engines, and reading images, run on CPUs
    places = {"keras": keras.backend.backend(), "savedmodel": "tensorflow"}
    place = None if config.mode == "input" else places.get(config.engine)
    paired_runs.serve_steps(step, about, place)


def start_ours(config):
    """Starts our worker process, with the flags of this one."""
    command = [sys.executable, __file__, "--worker"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in ("worker", "out", "against") or value is None:
            continue
        no = "no-" if value is False else ""
        text = "" if isinstance(value, bool) else f"={value}"
        command.append(f"--{no}{field.name}{text}")
    # the backend must be set before Keras is imported
    return Worker(command, {"KERAS_BACKEND": config.backend})


def start_peer(name, config):
    """Starts the worker process of a peer."""
    if name.startswith("huggingface"):
        return start_huggingface(config, compiled=name.endswith("compiled"))
    engine = "keras" if name == "plain" else name
    plain = {"residual_dtype": None, "quantize": None, "engine": engine}
    if engine != "keras":
        plain |= {name: default(name) for name in KERAS_FLAGS}
    return start_ours(dataclasses.replace(config, **plain))


def start_huggingface(config, compiled):
    """Starts transformers' worker process, with the sizes of the preset."""
    sizes = preset_sizes(config.preset)
    sizes["image_size"] = config.image_size or sizes["image_size"]
    sizes["depth"] = config.depth or sizes["depth"]
    command = [
        sys.executable,
        str(Path(__file__).with_name("benchmark_huggingface.py")),
    ]
    command += [f"--{name}={value}" for name, value in sizes.items()]
    for name in ("mode", "batch_size", "precision", "mask_ratio"):
        command.append(f"--{name}={getattr(config, name)}")
    return Worker(command + ["--compile"] * compiled)


def describe(worker, config, ours):
    """Returns the results of a side as a dict; `ours` counts transformers' FLOPs."""
    median = statistics.median(worker.seconds)
    row = {
        **worker.about,
        "seconds": worker.seconds,
        "images_per_second": config.batch_size / median,
        "peak_memory": worker.peak,
        "peak_memory_of": worker.peak_of,
    }
    counted = {name: ours.about[name] for name in ("flops", "peak_flops")}
    counted |= worker.about
    if counted["flops"]:
        row["mfu"] = counted["flops"] / median / counted["peak_flops"]
    return row


def report(rows, config):
    """Prints the results of each side, and the ratios of the first to the others."""
    print(
        f"{config.mode}, {config.preset}, {config.precision}, batch size "
        f"{config.batch_size}, median of {config.repeats} steps:"
    )
    for row in rows:
        mfu = f", MFU {row['mfu']:.0%}" if "mfu" in row else ""
        print(
            f"  {row['library']}: {row['images_per_second']:.2f} images/s{mfu}, first "
            f"step {row['first_step']:.1f} s, peak of the {row['peak_memory_of']} "
            f"{row['peak_memory'] / 2**30:.2f} GiB"
        )
    for row in rows[1:]:
        ratio, low, high = compare(rows[0]["seconds"], row["seconds"])
        memory = ""
        if row["peak_memory_of"] == rows[0]["peak_memory_of"]:
            share = rows[0]["peak_memory"] / row["peak_memory"]
            memory = f"; of peak memory: {share:.2f}"
        to = "" if len(rows) == 2 else f" to {row['library']}"
        print(
            f"  ratio{to} of images/s: {ratio:.2f} (quartiles {low:.2f} to "
            f"{high:.2f}){memory}"
        )


def default(name):
    """Returns the default of a flag."""
    return getattr(BenchmarkConfig, name)


def check(config):
    """Returns the names of the peers, or raises where flags don't go together."""
    names = ("batch_size", "repeats", "accumulation_steps", "replicas")
    check_at_least(config, 1, *names)
    peers = config.against.split(",") if config.against else []
    if set(peers) - set(PEERS):
        raise ValueError(
            f"against must be among {', '.join(PEERS)}. Received: {config.against!r}"
        )
    if config.mode == "input" and peers:
        raise ValueError("--mode=input cannot be used with --against")
    engines = {config.engine, *peers} & set(ENGINES) - {"keras"}
    if engines and config.mode != "encode":
        raise ValueError(
            f"{', '.join(sorted(engines))} needs --mode=encode. Received: "
            f"--mode={config.mode}"
        )
    given = [f"--{f}" for f in KERAS_FLAGS if getattr(config, f) != default(f)]
    if config.engine != "keras" and given:
        raise ValueError(
            f"{', '.join(given)} needs --engine=keras. Received: "
            f"--engine={config.engine}"
        )
    runtimes = engines - {"savedmodel"}
    if runtimes and config.precision != "float32":
        raise ValueError(
            f"{', '.join(sorted(runtimes))} needs --precision=float32. Received: "
            f"--precision={config.precision}"
        )
    if config.accumulation_steps > 1 and not config.mode.endswith("-step"):
        raise ValueError(
            "--accumulation_steps needs --mode=pretrain-step or finetune-step. "
            f"Received: --mode={config.mode}"
        )
    if config.quantize and config.mode not in ("encode", "reconstruct"):
        raise ValueError(
            "--quantize needs --mode=encode or reconstruct. Received: "
            f"--mode={config.mode}"
        )
    return peers


def main(config):
    """Benchmarks one side or several."""
    peers = check(config)
    if config.worker:
        work(config)
        return
    starters = [start_ours, *(functools.partial(start_peer, name) for name in peers)]
    with contextlib.ExitStack() as stack:
        workers = [stack.enter_context(start(config)) for start in starters]
        take_turns(workers, config.warmup, config.repeats)
        rows = [describe(worker, config, workers[0]) for worker in workers]
    report(rows, config)
    if config.out:
        machine = {
            "date": time.strftime("%Y-%m-%d"),
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
        }
        document = {"config": dataclasses.asdict(config), **machine, "rows": rows}
        Path(config.out).write_text(json.dumps(document, indent=1) + "\n")


def cpu_name():
    """Returns the CPU's name, as the kernel tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


if __name__ == "__main__":
    run_script(main, BenchmarkConfig, __doc__)
