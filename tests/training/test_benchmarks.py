"""Benchmark scripts, end to end on the smallest models; no speed is asserted."""

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

import keras_mae
from keras_mae.presets import preset_sizes
from keras_mae.profiling import paired_runs
from keras_mae.profiling.costs import flops_per_image
from keras_mae.profiling.paired_runs import Worker, compare, take_turns
from tests.scripts import ROOT, config_class, load, refusal, run

TRAINING, SERVING = "training/benchmark.py", "serving/benchmark.py"
GROWTH = "training/benchmark_growth.py"


def needs(name):
    """Skips a test without a package; importing locust would replace all threads."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


@pytest.mark.nightly
def test_workers_are_interleaved(tmp_path):
    """By clocks of their own, of which each step takes some seconds."""
    steps = tmp_path / "steps"
    code = (
        "import sys, time\n"
        "from keras_mae.profiling.paired_runs import serve_steps\n"
        "now = [0.0]\n"
        "time.perf_counter = lambda: now[0]\n"
        "def step():\n"
        "    now[0] += float(sys.argv[1])\n"
        "    with open(sys.argv[2], 'a') as file:\n"
        "        file.write(sys.argv[1])\n"
        "print('chatter')\n"
        "serve_steps(step, {'name': 'x'})\n"
    )
    commands = [[sys.executable, "-c", code, seconds, str(steps)] for seconds in "15"]
    with Worker(commands[0]) as fast, Worker(commands[1]) as slow:
        take_turns([fast, slow], warmup=1, repeats=3)
    assert (fast.seconds, slow.seconds) == ([1.0] * 3, [5.0] * 3)
    # the first steps, those of the warmup, and the three that count
    assert steps.read_text() == "15" * 5
    assert fast.about == {"name": "x", "first_step": 1.0}
    assert fast.peak > 2**20
    assert compare(fast.seconds, slow.seconds) == (5.0, 5.0, 5.0)


def test_failed_worker_is_an_error():
    with pytest.raises(ValueError, match="Worker process failed"):
        Worker([sys.executable, "nothing.py"])


def test_speed_ratio_and_quartiles():
    ratio, low, high = compare([1.0, 2.0, 3.0], [2.0, 6.0, 3.0])
    assert ratio == 1.5 and (low, high) == (1.5, 2.5)
    assert compare([2.0], [3.0]) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize("gpu, precision", [(True, "high"), (False, "highest")])
def test_pytorch_multiplies_as_tf32_on_a_gpu(gpu, precision, monkeypatch):
    setting = ["highest"]
    torch = SimpleNamespace(
        cuda=SimpleNamespace(is_available=lambda: gpu),
        set_float32_matmul_precision=setting.append,
        get_float32_matmul_precision=lambda: setting[-1],
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert paired_runs.use_tf32() == precision


def test_peak_memory_is_the_accelerators_where_there_is_one(monkeypatch):
    device = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 3})
    cuda = {"is_available": lambda: True, "max_memory_allocated": lambda: 5}
    config = SimpleNamespace(
        list_physical_devices=lambda kind: [kind],
        experimental=SimpleNamespace(get_memory_info=lambda name: {"peak": 7}),
    )
    fakes = {
        "jax": SimpleNamespace(devices=lambda: [device]),
        "torch": SimpleNamespace(cuda=SimpleNamespace(**cuda)),
        "tensorflow": SimpleNamespace(config=config),
    }
    peaks = []
    for backend, fake in fakes.items():
        monkeypatch.setitem(sys.modules, backend, fake)
        peaks.append(paired_runs.peak_memory(backend))
    assert peaks == [{"peak": n, "peak_of": "accelerator"} for n in (3, 5, 7)]
    device.memory_stats = lambda: None
    config.list_physical_devices = lambda kind: []
    cuda["is_available"] = lambda: False
    fakes["torch"].cuda = SimpleNamespace(**cuda)
    for backend in (*fakes, None):
        peak = paired_runs.peak_memory(backend)
        assert peak["peak_of"] == "process" and peak["peak"] > 2**20


def test_peaks_of_a_gpu_and_a_process_have_no_ratio(capsys):
    benchmark = load(TRAINING)
    row = {"library": "x", "images_per_second": 1.0, "first_step": 1.0}
    row |= {"seconds": [1.0], "peak_memory": 2**30, "peak_memory_of": "accelerator"}
    benchmark.report([row, row], benchmark.BenchmarkConfig())
    assert "of peak memory: 1.00" in capsys.readouterr().out
    other = {**row, "peak_memory_of": "process"}
    benchmark.report([row, other], benchmark.BenchmarkConfig())
    out = capsys.readouterr().out
    assert "peak of the accelerator 1.00 GiB" in out and "of peak memory" not in out


def test_transformers_has_the_flops_of_our_side():
    benchmark = load(TRAINING)
    counted = {"flops": 6.0, "peak_flops": 12.0}
    shared = {"peak": 1, "peak_of": "process"}
    ours = SimpleNamespace(about=counted, seconds=[1.0, 2.0, 1.0], **shared)
    theirs = SimpleNamespace(about={"torch": "2"}, seconds=[2.0], **shared)
    config = benchmark.BenchmarkConfig()
    rows = [benchmark.describe(one, config, ours) for one in (ours, theirs)]
    assert [row["mfu"] for row in rows] == [0.5, 0.25]
    counted["flops"] = 0.0  # of --mode=input
    assert "mfu" not in benchmark.describe(ours, config, ours)


def test_encoder_flops(make_model):
    model = make_model()
    whole, encoder = flops_per_image(model), flops_per_image(model.encoder)
    # unmasked, the encoder sees four times the tokens
    assert 0 < encoder < 4 * whole


@pytest.mark.nightly
@pytest.mark.parametrize(
    "mode", ["pretrain-step", "encode", "reconstruct", "finetune-step"]
)
def test_every_mode_against_transformers(mode, tmp_path):
    needs("transformers")
    finished = run(
        TRAINING,
        f"--mode={mode}",
        "--preset=mae_tiny",
        "--batch_size=2",
        "--repeats=2",
        "--against=huggingface",
        f"--out={tmp_path / 'rows.json'}",
    )
    assert finished.returncode == 0, finished.stderr
    assert "ratio of images/s: " in finished.stdout
    ours, theirs = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert ours["library"] == "keras_mae" and theirs["library"] == "transformers"
    assert len(ours["seconds"]) == 2 and 0 < ours["mfu"] < 2
    assert ours["tensorflow"] and theirs["torch"] and ours["peak_memory"] > 2**27


@pytest.mark.nightly
@pytest.mark.parametrize(
    "flags",
    [
        ["--mode=input"],
        ["--backend=jax"],
        ["--backend=jax", "--mode=encode", "--precision=bfloat16"],
        ["--xla=on", "--precision=mixed_bfloat16", "--rematerialize"],
        ["--accumulation_steps=2", "--depth=1", "--image_size=16"],
        ["--replicas=2"],
        ["--mode=encode", "--against=plain,savedmodel,openvino"],
    ],
)
def test_other_benchmark_flags(flags):
    needs("jax")
    small = ["--preset=mae_tiny", "--batch_size=4", "--repeats=2", "--warmup=1"]
    finished = run(TRAINING, *small, *flags)
    assert finished.returncode == 0, finished.stderr
    assert "images/s" in finished.stdout


@pytest.mark.nightly
def test_growth_plot_and_table(tmp_path):
    needs("matplotlib")
    small = ["--preset=mae_tiny", "--batch_size=4", "--repeats=1"]
    axes = "--axes=mask_ratio,memory"
    finished = run(GROWTH, *small, axes, f"--out={tmp_path / 'growth'}")
    assert finished.returncode == 0, finished.stderr
    assert "| yes | 4 | " in finished.stdout and "| no | 1 | 1.00 |" in finished.stdout
    rows = json.loads((tmp_path / "growth.json").read_text())["rows"]
    assert [row["mask_ratio"] for row in rows["mask_ratio"]] == [0.01, 0.5, 0.75, 0.9]
    assert (tmp_path / "growth.png").stat().st_size > 1000


def test_unknown_growth_axis():
    growth = load(GROWTH)
    assert growth.axis_values("depth", growth.GrowthConfig()) == [
        {"depth": depth} for depth in (3, 6, 12, 24)
    ]
    with pytest.raises(
        ValueError, match=r"axes must be among .*memory\. Received: 'width'"
    ):
        growth.axis_values("width", growth.GrowthConfig())


@pytest.mark.parametrize(
    "script, flag",
    [
        ("benchmark", "batch_sizes"),
        ("benchmark", "concurrency"),
        ("benchmark_batching", "clients"),
        ("benchmark_runtimes", "batch_sizes"),
    ],
)
def test_numbers_of_the_serving_benchmarks_are_read_first(script, flag, monkeypatch):
    monkeypatch.setattr(keras_mae.MAEEncoder, "from_preset", None)
    monkeypatch.setattr(keras_mae.MAEPretrainer, "from_preset", None)
    line = refusal(f"serving/{script}.py", f"--{flag}=1,x")
    assert f"{flag} must be ints of at least 1, such as 1,8. Received: '1,x'" in line


def test_wrong_flags_of_the_training_benchmark_are_one_line():
    for flags, message in (
        (["--repeats=0"], "repeats must be at least 1. Received: 0"),
        (["--mode=sleep"], "invalid choice: 'sleep'"),
    ):
        assert message in refusal(TRAINING, *flags)


@pytest.mark.nightly
def test_server_benchmark_by_each_protocol(tmp_path):
    needs("locust")
    out = tmp_path / "rows.json"
    finished = run(
        SERVING,
        *("--seconds=2", "--batch_sizes=2", "--concurrency=1", f"--out={out}"),
    )
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(out.read_text())
    kinds = ["session", "grpc_bytes", "rest_bytes", "rest_pixels"]
    assert [row["kind"] for row in rows] == kinds
    for row in rows:
        assert row["requests_s"] > 0 and row["failed"] == 0
        assert row["p50"] <= row["p95"] <= row["p99"]
    assert "| gRPC, bytes | 2 | 1 |" in finished.stdout


@pytest.mark.nightly
def test_soak_test(tmp_path):
    needs("locust")
    out = tmp_path / "rows.json"
    finished = run(SERVING, "--soak_minutes=1", f"--out={out}")
    assert finished.returncode == 0, finished.stderr
    (row,) = json.loads(out.read_text())
    assert row["failed"] == 0 and row["version"] == 3 and row["memory"] > 100


def test_running_server_needs_both_addresses():
    benchmark = load(SERVING)
    with pytest.raises(ValueError, match="both --endpoint and --rest_endpoint"):
        benchmark.main(benchmark.BenchmarkConfig(endpoint="localhost:8500"))
    with pytest.raises(ValueError, match="needs the embedded server"):
        addresses = {"endpoint": "localhost:8500", "rest_endpoint": "localhost:8501"}
        benchmark.soak(benchmark.BenchmarkConfig(**addresses), None, None)


def test_a_soak_ends_with_an_error_on_failed_requests_and_growing_memory():
    check = load(SERVING).check_soak
    rows = [{"failed": 0, "memory": 100.0}, {"failed": 0, "memory": 120.0}]
    check(rows)
    with pytest.raises(ValueError, match="Received: 1 failed, 100 to 120 MiB"):
        check([rows[0], {"failed": 1, "memory": 120.0}])
    with pytest.raises(ValueError, match="Received: 0 failed, 100 to 130 MiB"):
        check([rows[0], {"failed": 0, "memory": 130.0}])


@pytest.mark.slow
def test_no_weight_of_the_compared_losses_is_all_zeros():
    needs("transformers")
    sizes = {**preset_sizes("mae_tiny"), "depth": 1, "decoder_depth": 1}
    model = load("training/compare_losses.py").make_theirs(sizes)
    weights = dict(model.named_parameters())
    assert not [name for name, weight in weights.items() if not weight.any()]
    positions = [weight for name, weight in weights.items() if "pos" in name]
    assert [round(float(table.std()), 1) for table in positions] == [0.5, 0.5]


@pytest.mark.nightly
def test_losses_are_compared_with_transformers(capsys):
    needs("transformers")
    script = load("training/compare_losses.py")
    options = {"preset": "mae_tiny", "batch_size": 2, "steps": 2}
    script.main(script.CompareLossesConfig(**options))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and "largest relative difference" in lines[-1]
    with pytest.raises(SystemExit):
        script.main(script.CompareLossesConfig(**options, tolerance=1e-15))


def test_the_gpu_benchmark_passes_flags_that_exist():
    path = ROOT / "training/benchmark_gpu.sh"
    subprocess.run(["bash", "-n", path], check=True)
    text = path.read_text().replace("\\\n", "")
    commands = re.findall(r"(training/\w+\.py)([^|\n]*)", text)
    assert len(commands) == 2
    for script, flags in commands:
        known = {field.name for field in dataclasses.fields(config_class(script))}
        assert set(re.findall(r"--(\w+)", flags)) <= known


# what the GPU's benchmark calls: they note their arguments, and compute nothing
STUBS = {
    "python": '[ "$1" != - ] || exit "$PREFLIGHT"; echo "$@" >> "$CALLS"',
    "timeout": 'echo "$@" >> "$CALLS"; shift 2; exec "$@"',
    "nvidia-smi": "exit 9",
}


def gpu_benchmark(folder, preflight):
    """Runs the GPU's benchmark with stubs; returns its code, and their calls."""
    for name, text in STUBS.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    calls = folder / "calls"
    variables = {"CALLS": str(calls), "PREFLIGHT": str(preflight), "PYTHON": "python"}
    variables["PATH"] = f"{folder}:{os.environ['PATH']}"
    finished = subprocess.run(
        ["bash", ROOT / "training/benchmark_gpu.sh"],
        env={**os.environ, **variables},
        stdout=subprocess.DEVNULL,
    )
    return finished.returncode, calls.read_text().splitlines() if calls.exists() else []


def test_the_gpu_benchmark_ends_each_row_within_eight_minutes(tmp_path):
    code, calls = gpu_benchmark(tmp_path, preflight=0)
    limits = [line.split()[1] for line in calls if line.startswith("--kill-after=2 ")]
    rows = [line for line in calls if line.startswith("training/")]
    assert code == 0 and len(calls) == 12
    assert [" ".join(re.findall(r"(?:mode|preset)=(\S+)", row)) for row in rows] == [
        "mae_base",
        "pretrain-step mae_base",
        "pretrain-step mae_large",
        "encode mae_base",
        "encode mae_large",
    ]
    # each may take what the ones before left, here nearly all
    for limit, end in zip(limits, (30, 90, 95, 175, 325, 385, 475), strict=True):
        assert end - 30 < int(limit) <= end


def test_the_gpu_benchmark_ends_at_once_without_a_gpu(tmp_path):
    code, calls = gpu_benchmark(tmp_path, preflight=1)
    assert code == 1 and len(calls) == 2


def test_another_engine_is_compared_without_the_flags_of_keras(monkeypatch):
    benchmark, started = load(TRAINING), []
    monkeypatch.setattr(benchmark, "start_ours", started.append)
    config = benchmark.BenchmarkConfig(mode="encode", xla="on", quantize="int8")
    for name in ("plain", "onnx"):
        benchmark.start_peer(name, config)
        benchmark.check(started[-1])
    assert [(one.engine, one.xla) for one in started] == [
        ("keras", "on"),
        ("onnx", "auto"),
    ]


def test_engines_are_for_encoding():
    line = refusal(TRAINING, "--engine=openvino")
    assert "openvino needs --mode=encode. Received: --mode=pretrain-step" in line
    line = refusal(
        TRAINING, "--mode=encode", "--engine=onnx", "--precision=mixed_bfloat16"
    )
    assert "onnx needs --precision=float32. Received: --precision=mixed" in line
    for flag in ("--xla=on", "--rematerialize", "--replicas=2", "--quantize=int8"):
        line = refusal(TRAINING, "--mode=encode", "--engine=onnx", flag)
        name, _, _ = flag.partition("=")
        assert f"{name} needs --engine=keras. Received: --engine=onnx" in line
    line = refusal(TRAINING, "--mode=encode", "--accumulation_steps=2")
    assert "--accumulation_steps needs --mode=pretrain-step or finetune-step" in line
    line = refusal(TRAINING, "--mode=encode", "--against=timm")
    assert "against must be among huggingface, " in line and "'timm'" in line
