#!/usr/bin/env bash
# The tests. Sets up its own environment; arguments go to pytest.
#   bash scripts/test.sh                     all tests
#   bash scripts/test.sh -k fgce -x          a part of them
#   bash scripts/test.sh --setup-only        only the install
# shellcheck source=scripts/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
ensure_environment dev
if [ "${1:-}" = --setup-only ]; then
    echo "environment ready: source $VENV/bin/activate"
    exit 0
fi
cd "$REPO"
# The tests' models are tiny: a second thread costs more than it does.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec python -m pytest "$@"
