#!/usr/bin/env bash
# CA-EMER at toy scale, on two CPU cores: real mp4 clips and a tiny HumanOmni, then scripts/run_caemer.sh on them: SFT,
# GRPO with format and accuracy, GRPO with coherence judged over HTTP, rejection sampling, fine-tuning on what came
# through, GRPO again; predictions on held-out clips after each stage, evaluation, a report.
#
#   bash scripts/quickstart.sh               a quarter of an hour; writes runs/quickstart/report.html and summary.json
#   bash scripts/quickstart.sh --smoke       the same path with next to no data and training, in under three minutes
#   bash scripts/quickstart.sh --seed 1      another world and another model, in runs/quickstart-seed1
#   bash scripts/quickstart.sh -- FLAGS      hands flags on to scripts/run_caemer.sh, as scripts/ablations.py does
#
# Interrupt it as you like: run again, it goes on where it was. A finished step is not done again.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=scripts/launch.sh
source scripts/launch.sh
# shellcheck source=scripts/steps.sh
source scripts/steps.sh

seed=0 smoke=
while [ $# -gt 0 ]; do
    case $1 in
        --seed) seed=$2; shift 2 ;;
        --smoke) smoke=yes; shift ;;
        --) shift; break ;;
        *) echo "quickstart.sh knows --seed N, --smoke and -- FLAGS, not $1" >&2; exit 2 ;;
    esac
done

name=quickstart
[ "$seed" = 0 ] || name=$name-seed$seed
# The toy world has few words, so its explanations are alike; and 4 candidates of 96 tokens say what the tiny model can.
rft=(--set candidates.n=4 --set candidates.max_new_tokens=96 --set rejection.max_near_copies=8)
world=() towers=() sizes=()
if [ -n "$smoke" ]; then
    name=$name-smoke
    world=(--train 28 --val 7 --test 14)
    towers=(--epochs 1 --batch_size 4)
    # Enough fine-tuning for the format, so that some candidates are right by chance: rejection needs some to choose from.
    sizes=(--set sft.num_train_epochs=16 --set sft.per_device_train_batch_size=7 --set sft.eval_strategy=no)
    sizes+=(--set sft.save_steps=0.5 --set sft.save_strategy=steps)
    rft+=(--set rft.num_train_epochs=1 --set candidates.n=16)
    for phase in grpo1 grpo2 grpo3; do
        sizes+=(--set "$phase.max_steps=2" --set "$phase.per_device_train_batch_size=16")
        sizes+=(--set "$phase.max_completion_length=32")
    done
    # And nothing that they say deserves to be kept: what there is goes through.
    rft+=(--set rejection.min_sentence_score=1 --set rejection.min_s_coh=1 --set rejection.min_gain=0)
fi
case " $* " in *" --without_rft "*) rft=() ;; esac # run_caemer.sh refuses settings of steps that it leaves out
run=runs/$name data=runs/$name/data

export EXTRAS=dev GPUS_PER_NODE=0
ensure_environment "$EXTRAS"
lock_run
step data --inputs scripts/make_toy_data.py --outputs "$data/world.json" "$data/sft_train.jsonl" "$data/test.jsonl" -- \
    python scripts/make_toy_data.py --output "$data" --seed "$seed" "${world[@]}"
step model --inputs "$data/sft_train.jsonl" --outputs "$run/untrained" -- \
    python scripts/make_tiny_model.py --corpus "$data/sft_train.jsonl" --output "$run/untrained" --seed "$seed"
step towers --inputs "$run/untrained" "$data/world.json" --outputs "$run/model" -- \
    python scripts/pretrain_tiny_towers.py --model "$run/untrained" --world "$data" --output "$run/model" \
    --clip_cache "$run/clip_cache" --seed "$seed" "${towers[@]}"
exec 9>&- # run_caemer.sh takes the lock itself

exec bash scripts/run_caemer.sh --size toy --label_set toy --name "$name" --data "$data" --model "$run/model" \
    --seed "$seed" --judge configs/fgce/lexicon.yaml --clip_cache "$run/clip_cache" \
    --set "sft.validation_data=$data/sft_val.jsonl" --set infer.max_new_tokens=96 \
    "${sizes[@]}" "${rft[@]}" "$@"
