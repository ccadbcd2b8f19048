#!/usr/bin/env bash
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
#SBATCH --output=logs/%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@600
# CA-EMER from end to end: SFT, GRPO 1 (format, accuracy), GRPO 2 (and coherence), candidates and rejection sampling, RFT
# on what came through and on cold-start data, GRPO 3 (format, accuracy), predictions after each stage, evaluation.
#
#   bash scripts/run_caemer.sh --size 0.5B --label_set mafw             this machine, one stage after the other
#   bash scripts/run_caemer.sh --size 0.5B --label_set mafw --slurm     a job a stage, each after the one before
#   bash scripts/run_caemer.sh --size 7B --label_set dfew --set sft.num_train_epochs=3 --name seven
#
# Interrupt it as you like: the same command goes on where it was, inside a stage from its last checkpoint. Everything is
# in runs/NAME; runs/NAME/manifest.json holds inputs, outputs, their hashes, metrics and seconds of every step.
#
#   --size SIZE           configs/SIZE holds the stages' configurations: 0.5B, 7B, toy
#   --label_set SET       as scripts/evaluate.py knows it
#   --name NAME           of the run (SIZE)
#   --data FOLDER         of sft_train.jsonl, grpo_train.jsonl, test.jsonl (data)
#   --data_root FOLDER    of relative clip paths (the records' own)
#   --model FOLDER        the base model, in the native format (models/HumanOmni-SIZE)
#   --clip_cache FOLDER   of decoded clips, for training and prediction (runs/clip_cache)
#   --seed N              of every stage (the configurations')
#   --judge CONFIG.yaml   serve this FG-CE judge here; else FGCE_URL, else the servers of srun_fgce.sh
#   --set STEP.KEY=VALUE  overrides a key of a step's configuration; a list is divided by commas; repeat it at will. Steps:
#                         sft, grpo1, grpo2, candidates, rejection, rft, grpo3, infer, evaluate. So an ablation is
#                         --set grpo2.rewards=format,accuracy or --set rejection.reassemble=false (docs/ablations.md).
#                         A step that the run does not have is refused
#   --stage STAGE         this one only: sft, grpo1, grpo2, candidates, rejection, rft, grpo3 or evaluate
#   --without_rft         no candidates, rejection and RFT: GRPO 3 goes on from GRPO 2
#   --slurm               submit jobs; nodes, partition and account come from the header above and from SBATCH_* variables.
#                         The judge is a job of its own (srun_fgce.sh) unless FGCE_URL is set, and is cancelled at the end
set -euo pipefail
# Slurm runs a copy of this script from its spool folder; the job starts in the folder of sbatch.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
# shellcheck source=scripts/launch.sh
source scripts/launch.sh
# shellcheck source=scripts/judge.sh
source scripts/judge.sh
# shellcheck source=scripts/steps.sh
source scripts/steps.sh

STAGES=(sft grpo1 grpo2 candidates rejection rft grpo3 evaluate)
TRAINED=(sft grpo1 grpo2 rft grpo3)

arguments=()
size='' label_set='' name='' data=data data_root='' model='' clip_cache=runs/clip_cache
seed='' judge='' only='' slurm='' overrides=()
while [ $# -gt 0 ]; do
    case $1 in
        --slurm) slurm=yes; shift; continue ;;
        --without_rft)
            STAGES=(sft grpo1 grpo2 grpo3 evaluate) TRAINED=(sft grpo1 grpo2 grpo3)
            arguments+=("$1"); shift; continue ;;
        --size | --label_set | --name | --data | --data_root | --model | --clip_cache | --seed | --judge) ;;
        --stage | --set) ;;
        *) echo "run_caemer.sh does not know $1; its first lines list what it knows" >&2; exit 2 ;;
    esac
    [ $# -gt 1 ] || { echo "$1 needs a value" >&2; exit 2; }
    case $1 in
        --set) overrides+=("$2") ;;
        --stage) only=$2 ;;
        *) printf -v "${1#--}" %s "$2" ;;
    esac
    arguments+=("$1" "$2")
    shift 2
done
if [ -z "$size" ] || [ -z "$label_set" ]; then
    echo "--size and --label_set are needed" >&2
    exit 2
fi
steps=("${STAGES[@]}" infer)
for override in "${overrides[@]}"; do
    if ! [[ $override =~ ^([a-z0-9]+)\.[^=]+= && " ${steps[*]} " = *" ${BASH_REMATCH[1]} "* ]]; then
        echo "--set $override is no STEP.KEY=VALUE with a step of this run: ${steps[*]}" >&2
        exit 2
    fi
done
if [ -n "$only" ] && [[ " ${STAGES[*]} " != *" $only "* ]]; then
    echo "--stage $only is none of ${STAGES[*]}" >&2
    exit 2
fi
[ -d "configs/$size" ] || { echo "--size $size: there is no folder configs/$size" >&2; exit 2; }
name=${name:-$size}
model=${model:-models/HumanOmni-$size}
run=runs/$name

# flags STEP: FLAGS gets the flags by which --seed and --set override a step's configuration.
flags() {
    local override values pairs=()
    FLAGS=()
    [ -z "$seed" ] || [ "$1" = infer ] || pairs=("seed=$seed")
    for override in "${overrides[@]}"; do
        [ "${override%%.*}" != "$1" ] || pairs+=("${override#*.}")
    done
    for override in "${pairs[@]}"; do
        case $1 in
            candidates | rejection) FLAGS+=(--set "$override") ;;
            *)
                IFS=, read -ra values <<< "${override#*=}"
                FLAGS+=("--${override%%=*}" "${values[@]}")
                ;;
        esac
    done
}

# train STAGE PROGRAM BASE DATA [ROOT]: trains from the model in BASE on DATA, whose clips are in ROOT, and predicts the
# test set.
train() {
    local stage=$1 program=$2 base=$3 records=$4 root=${5-$data_root} config=configs/$size/$1.yaml
    flags "$stage"
    step "$stage" --inputs "$config" "$base" "$records" --outputs "$run/$stage" \
        --metrics "$run/$stage/trainer_state.json" -- \
        launch "$program" "$config" --model_path "$base" --train_data "$records" --output_dir "$run/$stage" \
        ${root:+--data_root "$root"} --clip_cache "$clip_cache" "${FLAGS[@]}"
    flags infer
    step "infer-$stage" --inputs "$run/$stage" "$data/test.jsonl" --outputs "$run/$stage/predictions/test.jsonl" -- \
        distribute inference_batch.py --model_path "$run/$stage" --input_jsonl "$data/test.jsonl" \
        --output_dir "$run/$stage/predictions" --clip_cache "$clip_cache" \
        ${data_root:+--data_root "$data_root"} "${FLAGS[@]}"
}

sample_candidates() {
    local config=configs/caemer/candidates.yaml
    flags candidates
    step candidates --inputs "$config" "$run/grpo2" "$data/grpo_train.jsonl" \
        --outputs "$run/candidates/grpo_train.jsonl" --metrics "$run/candidates/grpo_train.summary.json" -- \
        distribute scripts/sample_candidates.py --config "$config" --model_path "$run/grpo2" \
        --input_jsonl "$data/grpo_train.jsonl" --output_dir "$run/candidates" --clip_cache "$clip_cache" \
        ${data_root:+--data_root "$data_root"} "${FLAGS[@]}"
}

build_rft() {
    local config=configs/caemer/rft.yaml
    flags rejection
    step rejection --inputs "$config" "$run/candidates/grpo_train.jsonl" "$data/grpo_train.jsonl" \
        "$data/sft_train.jsonl" --outputs "$run/rejection/rft.jsonl" "$run/rejection/yield.json" \
        --metrics "$run/rejection/yield.json" -- \
        python scripts/build_rft.py --config "$config" --candidates "$run/candidates/grpo_train.jsonl" \
        --records "$data/grpo_train.jsonl" --cold_start "$data/sft_train.jsonl" --output_dir "$run/rejection" \
        ${data_root:+--data_root "$data_root"} "${FLAGS[@]}"
}

evaluate() {
    local stage files=() named=()
    for stage in "${TRAINED[@]}"; do
        files+=("$run/$stage/predictions/test.jsonl")
        named+=("$stage=$run/$stage/predictions/test.jsonl")
    done
    python scripts/manifest.py stage_info "$run" "${TRAINED[@]}" > "$run/stage_info.json"
    flags evaluate
    step evaluate --inputs "${files[@]}" --outputs "$run/summary.json" "$run/report.html" \
        --metrics "$run/summary.json" -- \
        python scripts/evaluate.py --label_set "$label_set" --data_root "${data_root:-$data}" --output "$run" \
        --stage_info "$run/stage_info.json" --require_judge --predictions "${named[@]}" "${FLAGS[@]}"
    echo "== done: open $run/report.html; figures in $run/summary.json"
}

needs_judge() {
    case $1 in grpo2 | rejection | evaluate) return 0 ;; *) return 1 ;; esac
}

# steps_of STAGE: the steps that the manifest lists for a stage.
steps_of() {
    case $1 in
        candidates | rejection | evaluate) echo "$1" ;;
        *) echo "$1 infer-$1" ;;
    esac
}

is_finished() {
    # shellcheck disable=SC2046
    python scripts/manifest.py finished "$run" $(steps_of "$1")
}

run_stage() {
    if needs_judge "$1" && ! is_finished "$1"; then
        if [ -n "$judge" ]; then serve_judge "$judge" "$run/.lock" "$run/fgce.log"; else find_judge; fi
    fi
    case $1 in
        sft) train sft train_sft.py "$model" "$data/sft_train.jsonl" ;;
        grpo1) train grpo1 train_grpo.py "$run/sft" "$data/grpo_train.jsonl" ;;
        grpo2) train grpo2 train_grpo.py "$run/grpo1" "$data/grpo_train.jsonl" ;;
        candidates) sample_candidates ;;
        rejection) build_rft ;;
        # Its records' clip paths start at their own folder, whatever --data_root says.
        rft) train rft train_sft.py "$run/grpo2" "$run/rejection/rft.jsonl" '' ;;
        grpo3) train grpo3 train_grpo.py "$run/${TRAINED[-2]}" "$data/grpo_train.jsonl" ;;
        evaluate) evaluate ;;
    esac
}

# submit STAGE DEPENDENCY [FLAGS]: a job for a stage; prints its id.
submit() {
    local stage=$1 dependency=$2
    shift 2
    FGCE_WAIT=${FGCE_WAIT:-1800} sbatch --parsable --job-name="$name-$stage" --kill-on-invalid-dep=yes \
        ${dependency:+"--dependency=$dependency"} "$@" scripts/run_caemer.sh --stage "$stage" "${arguments[@]}"
}

# submit_all: a job a stage that is not finished, each after the one before; the judge starts when it is needed first.
submit_all() {
    local stage previous='' judge_job='' dependency resources id
    mkdir -p logs
    for stage in "${STAGES[@]}"; do
        if is_finished "$stage"; then
            echo "$stage: done before"
            continue
        fi
        dependency=${previous:+afterok:$previous} resources=()
        if needs_judge "$stage" && [ -z "${FGCE_URL:-}" ]; then
            if [ -z "$judge_job" ]; then
                judge_job=$(sbatch --parsable --kill-on-invalid-dep=yes ${dependency:+"--dependency=$dependency"} srun_fgce.sh)
                echo "judge: job $judge_job"
            fi
            dependency=${dependency:+$dependency,}after:$judge_job
        fi
        case $stage in rejection | evaluate) resources=(--nodes=1 --gpus-per-node=0 --cpus-per-task=8) ;; esac
        id=$(submit "$stage" "$dependency" "${resources[@]}")
        echo "$stage: job $id${dependency:+, $dependency}"
        previous=$id
    done
    if [ -n "$judge_job" ]; then
        sbatch --parsable --job-name="$name-end" --dependency="afterany:$previous" --gpus-per-node=0 --time=5 \
            --output=logs/%x-%j.log --wrap="scancel $judge_job" > /dev/null
    fi
}

ensure_environment "${EXTRAS:-deepspeed}"
if [ -n "$slurm" ]; then
    submit_all
    exit
fi
lock_run
if [ -n "$only" ]; then
    run_stage "$only"
    exit
fi
for stage in "${STAGES[@]}"; do run_stage "$stage"; done
