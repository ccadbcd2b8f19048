# shellcheck shell=bash
# Sourced by pipelines, after scripts/launch.sh: steps that are done once, under a lock, with a manifest.
: "${run:=}" # the run's folder, which the caller sets

# lock_run: makes the run's folder and holds it for this process and all that it starts. After a kill -9 of the script
# alone, what it had started works on; the next run waits for it instead of writing into the same files.
lock_run() {
    mkdir -p "$run"
    exec 9> "$run/.lock"
    flock --nonblock 9 && return
    echo "== waiting: another run, or what a killed one had started, still works in $run"
    attend flock 9
}

# step NAME --inputs FILE... --outputs FILE... [--metrics FILE] -- COMMAND...: runs the command unless it is done.
step() {
    local name=$1 record=() status=0 started=$SECONDS
    shift
    while [ "$1" != -- ]; do
        record+=("$1")
        shift
    done
    shift
    python scripts/manifest.py start "$run" "$name" "${record[@]}" -- "$@" || status=$?
    if [ "$status" = 3 ]; then
        echo "== $name: done before"
        return
    fi
    [ "$status" = 0 ] || return "$status"
    echo "== $name"
    # launch and distribute attend to what they start.
    if [ "$(type -t "$1")" = function ]; then "$@"; else attend "$@"; fi
    python scripts/manifest.py finish "$run" "$name" --seconds $((SECONDS - started))
}
