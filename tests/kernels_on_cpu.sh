#!/usr/bin/env bash
# Runs the tests of the Triton kernels without a GPU, by Triton's interpreter, in an environment of its own.
#   bash tests/kernels_on_cpu.sh          half a minute, the first time as long again for 190 MB of packages
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tests/own_environment.sh
source tests/own_environment.sh
ENVIRONMENT=${TRITON_VENV:-build/triton}

own_environment "$ENVIRONMENT" tests/triton_needs.txt
export TRITON_INTERPRET=1 PYTHONPATH=$PWD OMP_NUM_THREADS=1
exec "$ENVIRONMENT/bin/python" -m pytest tests/test_decoding_kernels.py "$@"
