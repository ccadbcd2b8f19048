# shellcheck shell=bash
# Sourced by what trains and predicts: torchrun on all GPUs of a Slurm job, or of this machine.
#   GPUS_PER_NODE  default: the GPUs of the job, without Slurm those that torch sees; 0: one process on the CPU
#   RDZV_PORT      where the first node listens for the others; default: 20000 and the job's last four digits
#   EXTRAS         of the environment that is made where it is missing (deepspeed)
# Before a job's time is up Slurm tells this shell (#SBATCH --signal). A training then writes a checkpoint and stops; all
# else, which goes on from its last record or starts anew, is stopped where it is. The job is queued again.
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
    if [ -n "${SLURM_JOB_ID:-}" ]; then
        # A file reaches the ranks of all nodes; a signal ends at srun, or makes torchrun kill its workers half a minute
        # later. Where this is set, a training is what runs.
        local -x HUMANOMNI_STOP_FILE=$PWD/logs/stop-$SLURM_JOB_ID
        rm -f "$HUMANOMNI_STOP_FILE"
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
    local nodes=${SLURM_NNODES:-1} names
    names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
    # srun does not take the job's CPUs a task over by itself: without this, a node's processes share one core.
    attend srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 \
        ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} \
        torchrun --nnodes="$nodes" --nproc-per-node="$((GPUS > 0 ? GPUS : 1))" --rdzv-backend=c10d \
        --rdzv-id="$SLURM_JOB_ID" --rdzv-endpoint="${names%%$'\n'*}:${RDZV_PORT:-$((20000 + SLURM_JOB_ID % 10000))}" \
        "$@"
}

# attend COMMAND...: runs it, in a job such that Slurm's signal is heard meanwhile: bash waits for a foreground command's
# end before it looks at a trap. Starts nothing when the job's time is up.
attend() {
    if [ -z "${SLURM_JOB_ID:-}" ]; then
        "$@"
        return
    fi
    [ -z "$TIME_IS_UP" ] || queue_again
    local status=0
    "$@" &
    wait_for $! || status=$?
    rm -f "${HUMANOMNI_STOP_FILE:-}"
    # What came to its end all the same is finished; the next command finds that there is no time.
    [ "$status" = 0 ] || [ -z "$TIME_IS_UP" ] || queue_again
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

note_time() {
    TIME_IS_UP=yes
    if [ -n "${HUMANOMNI_STOP_FILE:-}" ]; then touch "$HUMANOMNI_STOP_FILE"; else queue_again; fi
}

# queue_again: stops what runs in the background, puts the job back into the queue and ends it.
queue_again() {
    echo "The job's time is up: it is queued again and goes on from its last checkpoint or record."
    # shellcheck disable=SC2046
    kill $(jobs -p) 2> /dev/null || true
    scontrol requeue "$SLURM_JOB_ID"
    exit 75 # as a training that was asked to stop
}

TIME_IS_UP=
[ -z "${SLURM_JOB_ID:-}" ] || trap note_time USR1
