#!/usr/bin/env bash
# One torchrun on every node of a SLURM job, and what comes after it: done, requeued, or stopped.
#
#   bash examples/slurm_torchrun.sh pretrain_gpt.py --save DIR ...       (the .slurm files beside this one do)
#
# torchrun ends with 1 however its ranks end, so SAVE/exit.json decides: status 75 (stopped with its state saved, a
# rank or a node lost) requeues the job, which then goes on from its latest checkpoint; any other ends it. A job
# that comes no further from start to start refuses to start, with status 2. docs/cluster.md has the rest.

set -euo pipefail
: "${SAVE:?run directory, on a file system that every node sees}"

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export OMP_NUM_THREADS=1
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240 # seconds that torchrun waits for its ranks to save, torch 2.13

mkdir -p "$SAVE"
started="$SAVE/.started-$SLURM_JOB_ID" # an exit.json older than this is that of an earlier start
touch "$started"
trap 'rm -f "$started"' EXIT

# --wait: when the ranks of one node have ended, those of the others have so many seconds.
srun --wait 60 torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-backend c10d \
    --rdzv-endpoint "${nodes[0]}:$((20000 + SLURM_JOB_ID % 10000))" \
    --rdzv-id "$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    "$@" || true

status=1
if [ "$SAVE/exit.json" -nt "$started" ]; then
    cat "$SAVE/exit.json"
    status=$(python -c 'import json, sys; print(json.load(open(sys.argv[1]))["status"])' "$SAVE/exit.json")
fi
if [ "$status" = 75 ]; then
    echo "requeued: job $SLURM_JOB_ID goes on from its latest checkpoint"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
