# shellcheck shell=bash
# Sourced where an FG-CE judge is needed; exports FGCE_URL, and FGCE_TOKEN where there is one.
#   FGCE_RUN   the folder of srun_fgce.sh with endpoints and token (runs/fgce)
#   FGCE_WAIT  seconds to wait for servers that load (0)

# find_judge: the servers of srun_fgce.sh, unless FGCE_URL is given or there are none.
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

# serve_judge CONFIG LOCK LOG: a server of this machine, once, ready when this returns. It ends when nobody holds LOCK
# any more, and so also after a kill -9 of the script that started it.
serve_judge() {
    local config=$1 lock=$2 log=$3 server
    [ -z "${FGCE_URL:-}" ] || return 0
    python -m fgce serve --config "$config" --port 0 > "$log" 2>&1 9>&- &
    server=$!
    (flock --shared "$lock" kill "$server" 2> /dev/null || true) 9>&- &
    until FGCE_URL=$(sed -n 's/.*FG-CE ready at \(http.*\)$/\1/p' "$log") && [ -n "$FGCE_URL" ]; do
        if ! kill -0 "$server" 2> /dev/null; then
            echo "the FG-CE server did not get ready; see $log" >&2
            return 1
        fi
        sleep 0.5
    done
    export FGCE_URL
    echo "== FG-CE judge at $FGCE_URL, log in $log"
}
