#!/usr/bin/env bash
# Sends what the OpenAPI schema allows, and what it does not, to a server: no request may make it fail with a 5xx.
# Schemathesis is in an environment of its own over the project's.
#   bash tests/fgce/schemathesis.sh          a minute, the first time a quarter more for 10 MB of packages
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=tests/own_environment.sh
source tests/own_environment.sh
BASE=$(realpath "${VENV:-.venv}")
ENVIRONMENT=${SCHEMATHESIS_VENV:-build/schemathesis}
SECONDS_AT_MOST=45

own_environment "$ENVIRONMENT" tests/fgce/schemathesis_needs.txt
LOG=$(mktemp)
"$BASE/bin/python" -m fgce serve --config configs/fgce/lexicon.yaml --port 0 2> "$LOG" &
SERVER=$!
trap 'kill "$SERVER" 2> /dev/null; rm -f "$LOG"' EXIT
URL=""
until [ -n "$URL" ]; do
    kill -0 "$SERVER" 2> /dev/null || { cat "$LOG" >&2; exit 1; }
    sleep 0.2
    URL=$(sed -n 's/.*FG-CE ready at \(http.*\)$/\1/p' "$LOG")
done

"$ENVIRONMENT/bin/schemathesis" run "$URL/openapi.json" --checks not_a_server_error --mode all \
    --max-time "$SECONDS_AT_MOST" --seed 1 --no-color "$@"
