#!/usr/bin/env bash
# Installs what the tests need and runs them:  bash run_tests.sh [pytest arguments]
# The default run leaves out the tests marked slow; `bash run_tests.sh -m slow` runs those.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
source scripts/environment.sh
ensure_environment dev
export PJRT_DEVICE=CPU
exec "$PYTHON" -m pytest "$@"
