# shellcheck shell=bash
# Sourced where an FG-CE judge is needed; exports FGCE_URL, and FGCE_TOKEN where there is one.
#   FGCE_RUN   the folder of srun_fgce.sh with endpoints and token (runs/fgce)
#   FGCE_WAIT  seconds to wait for servers that load (0; for one that is started here 1800)
export FGCE_RUN=${FGCE_RUN:-runs/fgce}

# start_judge: starts srun_fgce.sh and sees to its end; a judge that an earlier start of this job left behind goes first.
# Sets JUDGE_JOB or JUDGE_PID, and JUDGE_LOG.
start_judge() {
    FGCE_WAIT=${FGCE_WAIT:-1800}
    rm -f "$FGCE_RUN/endpoints"
    if [ -n "${SLURM_JOB_ID:-}" ]; then
        # Its name lets a requeued job find the judge that Slurm did not let it end.
        scancel --quiet --name="fgce-$SLURM_JOB_ID" || true
        JUDGE_JOB=$(sbatch --parsable --job-name="fgce-$SLURM_JOB_ID" --nodes="${FGCE_NODES:-1}" srun_fgce.sh)
        JUDGE_JOB=${JUDGE_JOB%%;*}
        JUDGE_LOG=logs/fgce-$JUDGE_JOB.log
        trap 'scancel "$JUDGE_JOB"' EXIT
    else
        mkdir -p logs
        JUDGE_LOG=logs/fgce.log
        FGCE_HOST=${FGCE_HOST:-127.0.0.1} bash srun_fgce.sh > "$JUDGE_LOG" 2>&1 &
        JUDGE_PID=$!
        trap 'kill "$JUDGE_PID" 2> /dev/null || true' EXIT
    fi
}

# judge_is_gone SECONDS: the judge that start_judge started has ended, as is seen so long after its start. Slurm's
# controller is asked every ten seconds.
judge_is_gone() {
    if [ -n "${JUDGE_PID:-}" ]; then
        ! kill -0 "$JUDGE_PID" 2> /dev/null
    elif [ -n "${JUDGE_JOB:-}" ] && [ $(($1 % 10)) = 0 ]; then
        # Where the controller does not answer, nothing is known of the job.
        case $(squeue --noheader --jobs="$JUDGE_JOB" 2>&1 || true) in '' | *'Invalid job id'*) ;; *) return 1 ;; esac
    else
        return 1
    fi
}

# find_judge: the servers of srun_fgce.sh, unless FGCE_URL is given or there are none.
find_judge() {
    local started=$SECONDS wait=${FGCE_WAIT:-0}
    [ -z "${FGCE_URL:-}" ] || return 0
    until [ -f "$FGCE_RUN/endpoints" ] || [ $((SECONDS - started)) -ge "$wait" ]; do
        if judge_is_gone $((SECONDS - started)); then
            echo "The FG-CE judge has ended before it was ready; the end of $JUDGE_LOG:" >&2
            tail -n 20 "$JUDGE_LOG" >&2
            return 1
        fi
        sleep 1
    done
    if [ -f "$FGCE_RUN/endpoints" ]; then
        FGCE_URL=$(paste -sd, "$FGCE_RUN/endpoints")
        FGCE_TOKEN=$(cat "$FGCE_RUN/token")
        export FGCE_URL FGCE_TOKEN
        echo "FG-CE servers: $FGCE_URL"
    elif [ "$wait" -gt 0 ]; then
        echo "No FG-CE server wrote $FGCE_RUN/endpoints within $wait seconds; see the log of srun_fgce.sh." >&2
        return 1
    else
        echo "No FG-CE server: FGCE_URL is not set and $FGCE_RUN/endpoints is not there;" \
            "phase 2, rejection sampling and evaluation need one."
    fi
}

# serve_judge CONFIG LOCK LOG: a server of this machine, once, ready when this returns. It ends when nobody holds LOCK
# any more, and so also after a kill -9 of the script that started it.
serve_judge() {
    local config=$1 lock=$2 log=$3 server
    [ -z "${FGCE_URL:-}" ] || return 0
    # Here, not in the background: the log of a run that was killed names the URL of a dead judge. A new file, because
    # that judge may still have the old one open.
    rm -f "$log"
    : > "$log"
    python -m fgce serve --config "$config" --port 0 >> "$log" 2>&1 9>&- &
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
