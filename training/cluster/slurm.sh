#!/usr/bin/env bash
# Pretrain on several GPU nodes. Run: sbatch training/cluster/slurm.sh --preset=mae_base ...
#
# One task per node, on all its GPUs. Before the time limit or a preemption the run saves,
# exits with code 75 and is requeued; --resume then continues it. --output must be a
# folder shared by all nodes.
#SBATCH --job-name=mae
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

port=${PORT:-23456}
workers=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed "s/.*/\"&:$port\"/" | paste -sd,)
export WORKERS=$workers

# single quotes: SLURM_PROCID differs by task
# srun does not inherit --cpus-per-task from the job
srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --kill-on-bad-exit=0 bash -c '
    export TF_CONFIG="{\"cluster\": {\"worker\": [$WORKERS]},
                       \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
    exec python training/pretrain.py --strategy=multiworker --resume "$@"' pretrain "$@"
code=$?
if [ "$code" -eq 75 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
