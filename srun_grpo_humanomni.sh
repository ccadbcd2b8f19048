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
# this script can start. Where none answers, it ends with an error before the first step:
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
# shellcheck source=scripts/judge.sh
source scripts/judge.sh

if [ -n "${FGCE_START:-}" ] && [ -z "${FGCE_URL:-}" ]; then
    ensure_environment "${EXTRAS:-deepspeed}" # first: the judge may share it
    start_judge
fi
find_judge
launch train_grpo.py "${1:-configs/0.5B/grpo1.yaml}" "${@:2}"
