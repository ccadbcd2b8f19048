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
# GRPO. Once requeued, or started again, a run goes on from its last checkpoint.
#
#   sbatch srun_grpo_humanomni.sh                                     configs/0.5B/grpo1.yaml on eight GPUs
#   sbatch --nodes=2 srun_grpo_humanomni.sh configs/7B/grpo1.yaml     on sixteen
#   bash srun_grpo_humanomni.sh configs/0.5B/grpo1.yaml --seed 1      this machine, without Slurm; flags override keys
#
# Phase 2 asks FG-CE servers: those of FGCE_URL and FGCE_TOKEN, else those that srun_fgce.sh has written down:
#   job=$(sbatch --parsable srun_fgce.sh)
#   FGCE_WAIT=1800 sbatch --dependency=after:$job srun_grpo_humanomni.sh configs/0.5B/grpo2.yaml
#
#   FGCE_RUN   the folder of srun_fgce.sh with endpoints and token (runs/fgce)
#   FGCE_WAIT  seconds to wait for the servers that load (0)
#
# Submit it from the repository's root; paths start there. scripts/launch.sh names the other variables.
set -euo pipefail
# Slurm runs a copy of this script from its spool folder; the job starts in the folder of sbatch.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")}"
# shellcheck source=scripts/launch.sh
source scripts/launch.sh

# find_judge: exports the URLs and the token of the FG-CE servers, unless FGCE_URL is given or there are none.
find_judge() {
    local folder=${FGCE_RUN:-runs/fgce} wait=${FGCE_WAIT:-0}
    [ -z "${FGCE_URL:-}" ] || return 0
    until [ -f "$folder/endpoints" ] || [ "$SECONDS" -ge "$wait" ]; do sleep 1; done
    if [ -f "$folder/endpoints" ]; then
        FGCE_URL=$(paste -sd, "$folder/endpoints")
        FGCE_TOKEN=$(cat "$folder/token")
        export FGCE_URL FGCE_TOKEN
        echo "FG-CE servers: $FGCE_URL"
    elif [ "$wait" -gt 0 ]; then
        echo "No FG-CE server wrote $folder/endpoints within $wait seconds; see the log of srun_fgce.sh." >&2
        return 1
    else
        echo "No FG-CE server: FGCE_URL is not set and $folder/endpoints is not there; only phase 2 needs one."
    fi
}

find_judge
launch train_grpo.py "${1:-configs/0.5B/grpo1.yaml}" "${@:2}"
