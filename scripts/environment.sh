# Sourced by run_tpu_xla.sh and run_tests.sh: ensure_environment base|tpu|dev sets PYTHON to an environment that has
# what requirements/<name>.txt locks. Work is done only when the lock or pyproject.toml has changed.

ensure_environment() {
    local wanted=$1 lock="requirements/$1.txt" stamp=".venv/.octfm-$1" sum
    if [[ -n "${OCTFM_PYTHON:-}" ]]; then
        PYTHON=$OCTFM_PYTHON
        return
    fi
    PYTHON=$PWD/.venv/bin/python
    sum=$(cat pyproject.toml "$lock" | cksum)
    [[ -x "$PYTHON" && -f "$stamp" && "$(< "$stamp")" == "$sum" ]] && return

    echo "octfm: preparing .venv ($wanted, once; several GB with torch)" >&2
    local base
    base=$(find_python) || return 1
    [[ -x "$PYTHON" ]] || "$base" -m venv .venv
    "$PYTHON" -m pip --version &> /dev/null || "$PYTHON" -m ensurepip > /dev/null
    "$PYTHON" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/installer.txt
    # Bytecode is compiled here, since a shared or read-only .venv could not cache it later.
    .venv/bin/uv pip install --quiet --python "$PYTHON" --compile-bytecode --require-hashes -r "$lock"
    .venv/bin/uv pip install --quiet --python "$PYTHON" --no-deps --no-build-isolation -e .
    echo "$sum" > "$stamp"
}

# The newest Python that torch-xla 2.9 has wheels for.
find_python() {
    local candidate
    for candidate in python3.12 python3.11 python3; do
        if command -v "$candidate" > /dev/null &&
            "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2> /dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "octfm: Python 3.11, 3.12 or 3.13 with venv is needed and was not found; install one (on Debian and Ubuntu:" \
        "apt-get install python3.11 python3.11-venv), or name an environment that has octfm: OCTFM_PYTHON=/path/to/python" >&2
    return 1
}
