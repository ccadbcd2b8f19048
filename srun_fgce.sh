#!/usr/bin/env bash
#SBATCH --job-name=fgce
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --output=logs/fgce-%j.log
# Serves FG-CE on every node of the job and writes the servers' URLs, once all are ready, to a file for the trainer.
#
#   sbatch srun_fgce.sh                            one node
#   sbatch --nodes=4 srun_fgce.sh                  four: the client shares its requests out among them
#   bash srun_fgce.sh                              this machine, without Slurm
#
# A training job then starts with
#   export FGCE_URL="$(cat runs/fgce/endpoints)" FGCE_TOKEN="$(cat runs/fgce/token)"
#
#   FGCE_CONFIG  settings of the servers   (configs/fgce/vllm.yaml)
#   FGCE_RUN     folder of endpoints, token and server logs (runs/fgce)
#   FGCE_PORT    port on every node        (8000; 0 takes free ones)
#   FGCE_HOST    address to bind           (the node's first one)
#   FGCE_WAIT    seconds that loading the judge may take (1800)
#   FGCE_CHECK   seconds between checks of a running server (20)
#   VENV         the virtual environment   (.venv). It is made where it is missing. vLLM pins other versions than the
#                trainer's: where VENV has no vLLM, a judge that needs it gets an environment of its own, $VENV-vllm
set -euo pipefail
# shellcheck source=scripts/env.sh
source scripts/env.sh

FGCE_CONFIG=${FGCE_CONFIG:-configs/fgce/vllm.yaml}
FGCE_RUN=${FGCE_RUN:-runs/fgce}
FGCE_PORT=${FGCE_PORT:-8000}
FGCE_WAIT=${FGCE_WAIT:-1800}
FGCE_CHECK=${FGCE_CHECK:-20}
# Slurm runs a copy of this script from its spool folder; the job starts in the folder of sbatch.
SCRIPT=${SLURM_SUBMIT_DIR:-$PWD}/srun_fgce.sh
export FGCE_CONFIG FGCE_RUN FGCE_PORT FGCE_WAIT FGCE_CHECK

# make_environment: that of the configuration's judge; the nodes share it.
make_environment() {
    if ! grep -Eqs '^ *backend: *vllm\b' "$FGCE_CONFIG"; then
        ensure_environment ''
    elif ! "$VENV/bin/python" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("vllm"))' 2> /dev/null; then
        VENV=$VENV-vllm
        ensure_environment vllm
    fi
    export VENV
}
[ "${1:-}" = node ] || make_environment
PYTHON=$VENV/bin/python

# serve_node: a server on this node, started anew where it has died or its judge stays dead, as vLLM's engine does.
# Its URL goes to $FGCE_RUN/nodes/ when the judge has scored the canaries.
serve_node() {
    local name=${SLURM_PROCID:-0}
    LOG=$FGCE_RUN/server-$name.log
    trap 'kill "$SERVER" 2> /dev/null; wait "$SERVER"; exit' TERM INT
    while start_server "$name"; do
        echo "$URL" > "$FGCE_RUN/nodes/$name"
        FGCE_PORT=${URL##*:} # the address stays what the trainer knows
        watch_server
        echo "FG-CE on $(hostname) stopped answering and is started again; see $LOG" >&2
    done
    return 1
}

# start_server NAME: sets SERVER, its process, and URL; fails where it is not ready in time.
start_server() {
    local host=${FGCE_HOST:-$(hostname -I | cut -d' ' -f1)} deadline=$((SECONDS + FGCE_WAIT)) before
    # What the log holds by now tells why the server before this one died; its URL is not this one's.
    : >> "$LOG"
    before=$(wc -c < "$LOG")
    "$PYTHON" -m fgce serve --config "$FGCE_CONFIG" --host "$host" --port "$FGCE_PORT" \
        --set "cache=$FGCE_RUN/scores-$1.db" --set "audit=$FGCE_RUN/audit-$1.jsonl" 2>> "$LOG" &
    SERVER=$!
    URL=""
    until [ -n "$URL" ] && is_ready "$URL"; do
        if ! kill -0 "$SERVER" 2> /dev/null || [ "$SECONDS" -gt "$deadline" ]; then
            echo "The FG-CE server on $(hostname) did not get ready; the end of $LOG:" >&2
            tail -n 20 "$LOG" >&2
            kill "$SERVER" 2> /dev/null
            return 1
        fi
        pause 1
        URL=$(tail -c "+$((before + 1))" "$LOG" | sed -n 's/.*FG-CE ready at \(http.*\)$/\1/p')
    done
}

# watch_server: returns when the server has died, or has been stopped after three failed checks in a row.
watch_server() {
    local misses=0
    while kill -0 "$SERVER" 2> /dev/null && [ "$misses" -lt 3 ]; do
        pause "$FGCE_CHECK"
        if is_ready "$URL"; then misses=0; else misses=$((misses + 1)); fi
    done
    kill "$SERVER" 2> /dev/null || true
    wait "$SERVER" || true
}

# pause SECONDS, such that a signal is not kept waiting
pause() {
    sleep "$1" &
    wait $!
}

is_ready() {
    "$PYTHON" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1] + "/readyz", timeout=120)' "$1" 2> /dev/null
}

if [ "${1:-}" = node ]; then
    serve_node
    exit
fi

mkdir -p logs "$FGCE_RUN"
rm -rf "$FGCE_RUN/nodes" "$FGCE_RUN/endpoints"
mkdir "$FGCE_RUN/nodes"
if [ -z "${FGCE_TOKEN:-}" ]; then
    FGCE_TOKEN=$("$PYTHON" -c 'import secrets; print(secrets.token_urlsafe(32))')
fi
export FGCE_TOKEN
(umask 077 && echo "$FGCE_TOKEN" > "$FGCE_RUN/token")

NODES=${SLURM_NNODES:-1}
if [ -n "${SLURM_JOB_ID:-}" ]; then
    # srun does not take the job's CPUs a task over by itself: without this, a server and its engine share one core.
    srun --nodes="$NODES" --ntasks="$NODES" --ntasks-per-node=1 --kill-on-bad-exit=1 \
        ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} bash "$SCRIPT" node &
else
    bash "$SCRIPT" node &
fi
SERVERS=$!
trap 'rm -f "$FGCE_RUN/endpoints"; kill "$SERVERS" 2> /dev/null; wait "$SERVERS"' TERM INT EXIT

while [ "$(find "$FGCE_RUN/nodes" -type f -size +0 | wc -l)" -lt "$NODES" ]; do
    kill -0 "$SERVERS" 2> /dev/null || { wait "$SERVERS"; exit 1; }
    sleep 1
done
cat "$FGCE_RUN"/nodes/* > "$FGCE_RUN/endpoints.new"
mv "$FGCE_RUN/endpoints.new" "$FGCE_RUN/endpoints"
echo "FG-CE is ready on $NODES node(s): $FGCE_RUN/endpoints"
wait "$SERVERS"
