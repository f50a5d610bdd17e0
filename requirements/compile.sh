#!/usr/bin/env bash
# Locks the versions of pyproject.toml, with hashes and without any download address.
# Needs `uv` on the PATH. Run it after a change of the dependencies; commit what it writes.
#   installer.txt  what installs the rest       base.txt  what a run needs
#   tpu.txt        base + libtpu and jax        dev.txt   base + tests and lint
set -euo pipefail
cd "$(dirname "$0")/.."
lock() {
    uv pip compile --universal --python-version 3.11 --generate-hashes --quiet \
        --no-emit-index-url --no-header --no-annotate --output-file "$@"
}
lock requirements/installer.txt requirements/installer.in
lock requirements/base.txt pyproject.toml
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
sed -E 's/ \\$//; /^ +--hash/d' requirements/base.txt > "$pins"
lock requirements/tpu.txt pyproject.toml --extra tpu --extra pallas --constraint "$pins"
lock requirements/dev.txt pyproject.toml --extra dev --constraint "$pins"
