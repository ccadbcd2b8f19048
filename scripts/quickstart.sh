#!/usr/bin/env bash
# CA-EMER at toy scale, on two CPU cores: real mp4 clips, a tiny HumanOmni, supervised fine-tuning, GRPO with format and
# accuracy, GRPO with coherence judged over HTTP, inference on held-out clips after each stage, evaluation, a report.
#
#   bash scripts/quickstart.sh               about ten minutes; writes runs/quickstart/report.html and summary.json
#   bash scripts/quickstart.sh --smoke       the same path with next to no data and training, in under three minutes
#   bash scripts/quickstart.sh --seed 1      another world and another model, in runs/quickstart-seed1
#
# Interrupt it as you like: run again, it goes on where it was. A finished stage is not done again; to do one again,
# remove its folder and those of the stages after it.
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$REPO"

seed=0 smoke=
while [ $# -gt 0 ]; do
    case $1 in
        --seed) seed=$2; shift 2 ;;
        --smoke) smoke=yes; shift ;;
        *) echo "quickstart.sh knows --seed N and --smoke, not $1" >&2; exit 2 ;;
    esac
done

run=runs/quickstart
[ "$seed" = 0 ] || run=$run-seed$seed
world=() towers=() sft=() grpo=()
if [ -n "$smoke" ]; then
    run=$run-smoke
    world=(--train 28 --val 7 --test 14)
    towers=(--epochs 1 --batch_size 4)
    sft=(--num_train_epochs 2)
    grpo=(--max_steps 2 --per_device_train_batch_size 16 --max_completion_length 32)
fi

ensure_environment dev
mkdir -p "$run"

# stage NAME COMMAND...: runs the command unless it has finished before, and notes how long it took.
stage() {
    local name=$1 started=$SECONDS
    shift
    if [ -f "$run/.done/$name" ]; then
        echo "== $name: done before"
        return
    fi
    echo "== $name"
    "$@"
    mkdir -p "$run/.done"
    echo $((SECONDS - started)) > "$run/.done/$name"
}

# serve_judge: starts the FG-CE server as a process of its own, once, and waits until it has scored its canaries.
judge_url=
serve_judge() {
    [ -z "$judge_url" ] || return 0
    local port
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
    python -m fgce serve --config configs/fgce/lexicon.yaml --port "$port" > "$run/fgce.log" 2>&1 &
    judge_pid=$!
    trap 'kill "$judge_pid" 2>/dev/null || true' EXIT
    for _ in $(seq 120); do
        if curl --silent --fail --output /dev/null "http://127.0.0.1:$port/readyz"; then
            judge_url=http://127.0.0.1:$port
            echo "== FG-CE judge at $judge_url, log in $run/fgce.log"
            return
        fi
        kill -0 "$judge_pid" 2>/dev/null || break
        sleep 0.5
    done
    echo "the FG-CE server did not get ready; see $run/fgce.log" >&2
    return 1
}

train() { # train NAME SCRIPT BASE ARGUMENTS...: a training stage from the model in $run/BASE, and its test predictions
    local name=$1 script=$2 base=$3
    shift 3
    stage "$name" python "$script" --config "configs/toy/$name.yaml" --seed "$seed" --output_dir "$run/$name" \
        --model_path "$run/$base" --clip_cache "$run/clip_cache" "$@"
    stage "infer-$name" python inference_batch.py --model_path "$run/$name" --input_jsonl "$run/data/test.jsonl" \
        --output_dir "$run/$name/predictions" --max_new_tokens 96
}

stage data python scripts/make_toy_data.py --output "$run/data" --seed "$seed" "${world[@]}"
stage model python scripts/make_tiny_model.py --corpus "$run/data/sft_train.jsonl" --output "$run/untrained" --seed "$seed"
stage towers python scripts/pretrain_tiny_towers.py --model "$run/untrained" --world "$run/data" --output "$run/model" \
    --clip_cache "$run/clip_cache" --seed "$seed" "${towers[@]}"
train sft train_sft.py model --train_data "$run/data/sft_train.jsonl" --validation_data "$run/data/sft_val.jsonl" "${sft[@]}"
train grpo1 train_grpo.py sft --train_data "$run/data/grpo_train.jsonl" "${grpo[@]}"
[ -f "$run/.done/grpo2" ] && [ -f "$run/.done/evaluate" ] || serve_judge
train grpo2 train_grpo.py grpo1 --train_data "$run/data/grpo_train.jsonl" --fgce_url "$judge_url" "${grpo[@]}"
python scripts/stage_info.py "$run" sft grpo1 grpo2 > "$run/stage_info.json"
stage evaluate python scripts/evaluate.py --label_set toy --seed "$seed" --fgce_url "$judge_url" \
    --data_root "$run/data" --output "$run" --stage_info "$run/stage_info.json" --predictions \
    "sft=$run/sft/predictions/test.jsonl" "grpo1=$run/grpo1/predictions/test.jsonl" "grpo2=$run/grpo2/predictions/test.jsonl"

echo "== done: open $run/report.html; the figures are in $run/summary.json"
