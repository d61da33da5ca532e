#!/usr/bin/env bash
# Benchmarks on one GPU, in under eight minutes: Keras on JAX against transformers on
# PyTorch with SDPA and torch.compile, both in bfloat16; before that, twenty losses of
# both in float32. What it prints goes to docs/benchmarks.md.
#
#   pip install -e ".[port]" "jax[cuda13]"
#   bash training/benchmark_gpu.sh
#
# Images a step: BASE_BATCH=256 and LARGE_BATCH=128, lower where a GPU lacks memory.
set -euo pipefail
cd "$(dirname "$0")/.."
# PyTorch, in a process of its own, needs memory beside JAX
export KERAS_BACKEND=jax XLA_PYTHON_CLIENT_PREALLOCATE=false
python="${PYTHON:-python}"
begin=$SECONDS

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
"$python" -c "import jax, torch; print('jax', jax.__version__, jax.devices()[0], \
'torch', torch.__version__); assert jax.default_backend() == 'gpu'"

# JAX would multiply in TF32
JAX_DEFAULT_MATMUL_PRECISION=highest timeout 80 "$python" training/compare_losses.py \
    --preset=mae_base --batch_size=16 --steps=20 | tail -1 \
    || echo "compare_losses: no result, or above its tolerance"

for mode in pretrain-step encode; do
    for size in base large; do
        batch="${BASE_BATCH:-256}"
        [ "$size" = large ] && batch="${LARGE_BATCH:-128}"
        timeout 95 "$python" training/benchmark.py --backend=jax --mode="$mode" \
            --preset="mae_$size" --batch_size="$batch" --precision=mixed_bfloat16 \
            --against=huggingface-compiled --warmup=3 --repeats=15 \
            || echo "$mode mae_$size: no result"
    done
done
echo "all of it took $((SECONDS - begin)) s"
