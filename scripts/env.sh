# shellcheck shell=bash
# Sourced by the entry scripts: makes the pinned virtual environment where it is missing or stale, and activates it.
#   VENV    the environment's folder (default .venv in the repository); an active one of your own is used as it is
#           when VENV points at it
#   PYTHON  the interpreter that makes it (default: the first of python3.12, python3.11, python3 that is 3.11 or 3.12)
set -euo pipefail

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
VENV=${VENV:-$REPO/.venv}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.12 python3.11 python3 python}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "Python 3.11 or 3.12 is needed and neither is on PATH; install one or set PYTHON=/path/to/python." >&2
    return 1
}

# ensure_environment EXTRAS: installs the project with these extras (may be empty) at the versions of constraints.txt, or
# with vllm at those that vLLM pins, which are others. Quick when nothing has changed since the last time: a stamp holds
# the hash of what the install depends on.
ensure_environment() {
    local extras=$1 wanted versions=(--constraint "$REPO/constraints.txt")
    [ "$extras" != vllm ] || versions=()
    wanted=$(cat "$REPO/pyproject.toml" "$REPO/constraints.txt" | sha256sum | cut -c1-16)
    if ! grep -qF "$extras $wanted" "$VENV/.installed" 2>/dev/null; then
        echo "== installing into $VENV (extras: ${extras:-none}); the first time takes a few minutes"
        [ -x "$VENV/bin/python" ] || "$(find_python)" -m venv "$VENV"
        "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check \
            "${versions[@]}" --editable "$REPO${extras:+[$extras]}"
        grep -sF " $wanted" "$VENV/.installed" > "$VENV/.installed.new" || true
        echo "$extras $wanted" >> "$VENV/.installed.new"
        mv "$VENV/.installed.new" "$VENV/.installed"
    fi
    # shellcheck disable=SC1091
    source "$VENV/bin/activate"
}
