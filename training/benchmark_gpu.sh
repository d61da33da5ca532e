#!/usr/bin/env bash
# Benchmarks on one GPU, in under eight minutes: Keras on JAX against transformers on
# PyTorch with SDPA and torch.compile, both in bfloat16; before that, twenty losses of
# both in float32. What it prints goes to docs/benchmarks.md.
#
#   pip install -e ".[port]" "jax[cuda13]"
#   bash training/benchmark_gpu.sh
#
# It needs JAX and PyTorch that see the GPU: jax[cuda13], like PyTorch's wheel on PyPI,
# wants a driver of 580 or newer; with an older one take jax[cuda12], and PyTorch from
# https://download.pytorch.org/whl/cu126. TensorFlow is imported and computes nothing:
# its CPU build will do. torch.compile needs gcc and Python's headers (python3-dev).
#
# Images a step: BASE_BATCH=256 and LARGE_BATCH=128, lower where a GPU lacks memory.
set -euo pipefail
cd "$(dirname "$0")/.."
# PyTorch, in a process of its own, needs memory beside JAX, and TensorFlow takes none
export KERAS_BACKEND=jax XLA_PYTHON_CLIENT_PREALLOCATE=false \
    TF_FORCE_GPU_ALLOW_GROWTH=true
python="${PYTHON:-python}"

# by SECOND COMMAND...: ends a command at that second of this script. What a row
# leaves of its time, the next ones may use: those of ViT-L compile the longest
by() {
    local left=$(($1 - SECONDS))
    timeout --kill-after=2 "$left" "${@:2}"
}

date -u "+%F %H:%M UTC"
by 30 nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader \
    || echo "nvidia-smi: no result"
by 90 "$python" - <<'END' || { echo "Nothing was measured."; exit 1; }
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
import sysconfig

versions = [f"Python {platform.python_version()}"]
for name in ("jax", "jaxlib", "torch", "triton", "transformers", "keras", "tensorflow"):
    try:
        versions.append(f"{name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
        versions.append(f"no {name}")
print(", ".join(versions), flush=True)
needed = ("jax", "torch", "transformers", "tensorflow", "keras_mae")
missing = [name for name in needed if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"Not installed: {', '.join(missing)}")
header = os.path.join(sysconfig.get_path("include"), "Python.h")
compilers = ("gcc", "clang", os.environ.get("CC", "gcc"))
if not any(map(shutil.which, compilers)) or not os.path.exists(header):
    print(f"torch.compile may fail: it needs gcc and {header}")

import torch

if not torch.cuda.is_available():
    sys.exit(f"PyTorch sees no GPU. It is built for CUDA {torch.version.cuda}.")
import jax

if jax.default_backend() != "gpu":
    sys.exit(f"JAX sees no GPU. Its devices are {jax.devices()}.")
gpu = jax.devices()[0].device_kind
print(f"{gpu}; JAX sees it, and so does PyTorch, for CUDA {torch.version.cuda}")
END

# JAX would multiply in TF32
JAX_DEFAULT_MATMUL_PRECISION=highest by 95 "$python" training/compare_losses.py \
    --preset=mae_base --batch_size=16 --steps=20 | tail -1 \
    || echo "compare_losses: no result, or above its tolerance"

while read -r end mode size batch; do
    by "$end" "$python" training/benchmark.py --backend=jax --mode="$mode" \
        --preset="mae_$size" --batch_size="$batch" --precision=mixed_bfloat16 \
        --against=huggingface-compiled --warmup=3 --repeats=15 </dev/null \
        || echo "$mode mae_$size: no result by second $end"
done <<END
175 pretrain-step base ${BASE_BATCH:-256}
325 pretrain-step large ${LARGE_BATCH:-128}
385 encode base ${BASE_BATCH:-256}
475 encode large ${LARGE_BATCH:-128}
END
echo "all of it took $SECONDS s"
