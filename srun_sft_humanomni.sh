#!/usr/bin/env bash
#SBATCH --job-name=humanomni-sft
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=logs/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
# Supervised fine-tuning. Ten minutes before its time is up, a run writes a checkpoint and is queued again;
# however it ended, started again it goes on from its last checkpoint.
#
#   sbatch srun_sft_humanomni.sh                                      configs/0.5B/sft.yaml on eight GPUs
#   sbatch --nodes=2 srun_sft_humanomni.sh configs/7B/sft.yaml        on sixteen
#   bash srun_sft_humanomni.sh configs/0.5B/sft.yaml --seed 1         this machine, without Slurm; flags override keys
#   bash srun_sft_humanomni.sh configs/0.5B/sft.yaml --dry_run        what would happen
#
# Submit it from the repository's root; paths start there. scripts/launch.sh names the variables.
set -euo pipefail
# Slurm runs a copy of this script from its spool folder; the job starts in the folder of sbatch.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")}"
# shellcheck source=scripts/launch.sh
source scripts/launch.sh
launch train_sft.py "${1:-configs/0.5B/sft.yaml}" "${@:2}"
