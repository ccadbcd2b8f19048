#!/usr/bin/env bash
#SBATCH --job-name=humanomni-grpo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
#SBATCH --output=logs/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
# GRPO. Ten minutes before its time is up, a run writes a checkpoint and is queued again;
# however it ended, started again it goes on from its last checkpoint.
#
#   sbatch srun_grpo_humanomni.sh                                     configs/0.5B/grpo1.yaml on eight GPUs
#   sbatch --nodes=2 srun_grpo_humanomni.sh configs/7B/grpo1.yaml     on sixteen
#   bash srun_grpo_humanomni.sh configs/0.5B/grpo1.yaml --seed 1      this machine, without Slurm; flags override keys
#
# Phase 2 asks FG-CE servers: those of FGCE_URL and FGCE_TOKEN, else those that srun_fgce.sh has written down, which
# this script can start:
#   FGCE_START=1 sbatch srun_grpo_humanomni.sh configs/0.5B/grpo2.yaml
#
#   FGCE_START 1: submit srun_fgce.sh, with FGCE_NODES nodes (1), or run it here without Slurm; end it after the training
#   FGCE_RUN   the folder of srun_fgce.sh with endpoints and token (runs/fgce)
#   FGCE_WAIT  seconds to wait for servers that load (0; with FGCE_START 1800)
#
# Submit it from the repository's root; paths start there. scripts/launch.sh names the other variables.
set -euo pipefail
# Slurm runs a copy of this script from its spool folder; the job starts in the folder of sbatch.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")}"
# shellcheck source=scripts/launch.sh
source scripts/launch.sh

# start_judge: starts srun_fgce.sh and sees to its end; a judge that an earlier start of this job left behind goes first.
start_judge() {
    rm -f "$FGCE_RUN/endpoints"
    if [ -n "${SLURM_JOB_ID:-}" ]; then
        local job
        # Its name lets a requeued job find the judge that Slurm did not let it end.
        scancel --quiet --name="fgce-$SLURM_JOB_ID" || true
        job=$(sbatch --parsable --job-name="fgce-$SLURM_JOB_ID" --nodes="${FGCE_NODES:-1}" srun_fgce.sh)
        trap 'scancel "'"${job%%;*}"'"' EXIT
    else
        mkdir -p logs
        FGCE_HOST=${FGCE_HOST:-127.0.0.1} bash srun_fgce.sh > logs/fgce.log 2>&1 &
        trap 'kill '"$!"' 2> /dev/null || true' EXIT
    fi
}

# find_judge: exports the URLs and the token of the FG-CE servers, unless FGCE_URL is given or there are none.
find_judge() {
    local started=$SECONDS
    until [ -f "$FGCE_RUN/endpoints" ] || [ $((SECONDS - started)) -ge "$FGCE_WAIT" ]; do sleep 1; done
    if [ -f "$FGCE_RUN/endpoints" ]; then
        FGCE_URL=$(paste -sd, "$FGCE_RUN/endpoints")
        FGCE_TOKEN=$(cat "$FGCE_RUN/token")
        export FGCE_URL FGCE_TOKEN
        echo "FG-CE servers: $FGCE_URL"
    elif [ "$FGCE_WAIT" -gt 0 ]; then
        echo "No FG-CE server wrote $FGCE_RUN/endpoints within $FGCE_WAIT seconds; see the log of srun_fgce.sh." >&2
        return 1
    else
        echo "No FG-CE server: FGCE_URL is not set and $FGCE_RUN/endpoints is not there; only phase 2 needs one."
    fi
}

export FGCE_RUN=${FGCE_RUN:-runs/fgce}
if [ -z "${FGCE_URL:-}" ]; then
    if [ -n "${FGCE_START:-}" ]; then
        start_judge
        FGCE_WAIT=${FGCE_WAIT:-1800}
    fi
    FGCE_WAIT=${FGCE_WAIT:-0}
    find_judge
fi
launch train_grpo.py "${1:-configs/0.5B/grpo1.yaml}" "${@:2}"
