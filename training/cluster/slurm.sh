#!/usr/bin/env bash
# Pretrain on several GPU nodes. Run: sbatch training/cluster/slurm.sh --preset=mae_base ...
#
# One task per node, on all its GPUs. Before the time limit or a preemption the run saves,
# exits with code 75 and is requeued; --resume then continues it. It is not requeued where
# a task ends with another code: its error would come again, also if the tasks that it
# leaves alone exit with 75. --output must be a folder shared by all nodes.
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

# Single quotes: SLURM_PROCID differs by task. srun does not inherit --cpus-per-task from
# the job, and returns the highest code of all tasks: 75 becomes the lowest, 1, and 1, of a
# Python error, 70. The trap lets the shell wait for a training that Slurm signals.
srun ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} --kill-on-bad-exit=0 bash -c '
    export TF_CONFIG="{\"cluster\": {\"worker\": [$WORKERS]},
                       \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
    trap : TERM
    python training/pretrain.py --strategy=multiworker --resume "$@"
    code=$?
    case $code in
        75) exit 1 ;;
        1) exit 70 ;;
        *) exit $code ;;
    esac' pretrain "$@"
code=$?
if [ "$code" -eq 1 ]; then
    code=75
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
