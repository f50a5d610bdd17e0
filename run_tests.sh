#!/usr/bin/env bash
# Installs what the tests need and runs them:  bash run_tests.sh [pytest arguments]
# The default run leaves out the tests marked slow; `bash run_tests.sh -m slow` runs those.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/environment.sh
ensure_environment dev
export PJRT_DEVICE=CPU OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
# A file's tests share what they have made, so files are what is dealt out to the processes.
exec "$PYTHON" -m pytest --numprocesses "${OCTFM_TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
