#!/usr/bin/env bash
# Pretrain with one command:  bash run_tpu_xla.sh CONFIG.yaml [key=value ...] [--device xla|cuda|cpu]
#
# Makes the environment in .venv where there is none (or uses the Python named by OCTFM_PYTHON), takes the TPU if there
# is one, else CUDA, else XLA on the CPU, and trains. Log, metrics and checkpoints are in the run folder, which is
# output_dir=... or runs/<name>-<time>. TERM and INT go to every process of the run; its exit code is returned.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() { sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
case "${1:-}" in
    "" ) usage >&2; exit 2 ;;
    -h | --help ) usage; exit 0 ;;
esac

source scripts/environment.sh
if compgen -G '/dev/accel*' > /dev/null || compgen -G '/dev/vfio/[0-9]*' > /dev/null; then
    ensure_environment tpu
else
    ensure_environment base
fi

# Left over from a preflight or a login shell, these would give the chips another topology than they have.
if [[ -n "${TPU_PROCESS_BOUNDS:-}${TPU_VISIBLE_CHIPS:-}${TPU_SKIP_MDS_QUERY:-}" ]]; then
    echo "run_tpu_xla.sh: unset TPU_PROCESS_BOUNDS, TPU_VISIBLE_CHIPS and TPU_SKIP_MDS_QUERY: with them the run would" \
        "not see the chips as they are" >&2
    exit 2
fi

export OCTFM_STARTED="${OCTFM_STARTED:-$(date +%Y%m%d-%H%M%S)}"
command=("$PYTHON" -m pretraining.train "$@")
# One process per GPU. torch-xla starts its own processes, one per chip.
gpus=0
if [[ " $* " != *" --device cpu"* && " $* " != *" --device xla"* ]] && command -v nvidia-smi > /dev/null; then
    gpus=$(nvidia-smi --list-gpus 2> /dev/null | grep -c '^GPU' || true)
fi
if ((gpus > 1)); then
    command=("$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$gpus" -m pretraining.train "$@")
fi

# Job control gives the run a process group of its own: all of the run, and nothing else.
set -m
"${command[@]}" &
run=$!
set +m
trap 'kill -TERM -- "-$run" 2> /dev/null || true' TERM
trap 'kill -INT -- "-$run" 2> /dev/null || true' INT
code=0
while kill -0 "$run" 2> /dev/null; do
    code=0
    wait "$run" || code=$?
done
exit "$code"
