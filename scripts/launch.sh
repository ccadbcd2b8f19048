# shellcheck shell=bash
# Sourced by what trains and predicts: torchrun on all GPUs of a Slurm job, or of this machine.
#   GPUS_PER_NODE  default: the GPUs of the job, without Slurm those that torch sees; 0: one process on the CPU
#   RDZV_PORT      where the first node listens for the others; default: 20000 and the job's last four digits
# Before the job's time is up (#SBATCH --signal), the run writes a checkpoint and stops, and the job is queued again.
#   EXTRAS         of the environment that is made where it is missing (deepspeed)
# shellcheck source=scripts/env.sh
source scripts/env.sh

# count_gpus: GPUS gets the GPUs of a node.
count_gpus() {
    GPUS=${GPUS_PER_NODE:-${SLURM_GPUS_ON_NODE:-$(python -c 'import torch; print(torch.cuda.device_count())')}}
}

# launch PROGRAM CONFIG.yaml [FLAGS]: trains by that configuration; flags override its keys.
launch() {
    local program=$1 config=$2 cpu=()
    shift 2
    if [ ! -f "$config" ]; then
        echo "$config is no file; give a configuration first, as in configs/0.5B/sft.yaml, and then the flags." >&2
        return 2
    fi
    ensure_environment "${EXTRAS:-deepspeed}"
    count_gpus
    if [ "$GPUS" = 0 ]; then
        echo "No GPU: one process on the CPU."
        cpu=(--use_cpu)
    fi
    distribute "$program" --config "$config" "${cpu[@]}" "$@"
}

# distribute PROGRAM [FLAGS]: a process a GPU on every node; without a GPU one process.
distribute() {
    count_gpus
    if [ -z "${SLURM_JOB_ID:-}" ]; then
        if [ "$GPUS" = 0 ]; then python "$@"; else torchrun --standalone --nproc-per-node="$GPUS" "$@"; fi
        return
    fi
    local nodes=${SLURM_NNODES:-1} names status=0 time_is_up=
    names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # A file reaches the ranks of all nodes; a signal ends at srun, or makes torchrun kill its workers half a minute later.
    export HUMANOMNI_STOP_FILE=$PWD/logs/stop-$SLURM_JOB_ID
    rm -f "$HUMANOMNI_STOP_FILE"
    trap 'time_is_up=yes; touch "$HUMANOMNI_STOP_FILE"' USR1
    # srun does not take the job's CPUs a task over by itself: without this, a node's processes share one core.
    srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 \
        ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} \
        torchrun --nnodes="$nodes" --nproc-per-node="$((GPUS > 0 ? GPUS : 1))" --rdzv-backend=c10d \
        --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="${names%%$'\n'*}:${RDZV_PORT:-$((20000 + SLURM_JOB_ID % 10000))}" \
        "$@" &
    wait_for $! || status=$?
    rm -f "$HUMANOMNI_STOP_FILE"
    if [ -n "$time_is_up" ]; then
        echo "The job's time is up: it is queued again and goes on from its last checkpoint."
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$status"
}

# wait_for PID: waits for its end, also where a trapped signal comes in between, and gives its status.
wait_for() {
    local status
    while true; do
        status=0
        wait "$1" || status=$?
        kill -0 "$1" 2> /dev/null || return "$status"
    done
}
