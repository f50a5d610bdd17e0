#!/usr/bin/env bash
# Pretrain with one command:  bash run_tpu_xla.sh CONFIG.yaml [key=value ...] [--device xla|cuda|cpu]
#                                  [--max-restarts N] [--backoff SECONDS] [--grace SECONDS]
#
# Makes the environment in .venv where there is none (or uses the Python named by OCTFM_PYTHON), takes the TPU if there
# is one, else CUDA, else XLA on the CPU, and trains. Log, metrics and checkpoints are in the run folder, which is
# output_dir=... or runs/<name>-<time>. A run that fails or is preempted starts again (5 times without progress, 10 s,
# 20 s ... apart) and goes on from its newest checkpoint. TERM or Ctrl-C: it saves and ends with 75, or is killed after
# 60 s or at a second signal. The exit code is the run's: docs/decisions/008-never-lose-a-run.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() { sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; }
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
stray=()
for name in TPU_PROCESS_BOUNDS TPU_VISIBLE_CHIPS TPU_SKIP_MDS_QUERY CLOUD_TPU_TASK_ID; do
    if [[ -n "${!name:-}" ]]; then stray+=("$name"); fi
done
if ((${#stray[@]})); then
    echo "run_tpu_xla.sh: unset ${stray[*]}; with these set the run would not see the chips as they are" >&2
    exit 2
fi

supervisor=("$PYTHON" -m pretraining.supervise)
training=()
while (($#)); do
    case "$1" in
        --max-restarts | --backoff | --grace ) supervisor+=("${@:1:2}"); shift $(($# > 1 ? 2 : 1)) ;;
        --max-restarts=* | --backoff=* | --grace=* ) supervisor+=("$1"); shift ;;
        * ) training+=("$1"); shift ;;
    esac
done
set -- ${training[@]+"${training[@]}"}

command=("$PYTHON" -m pretraining.train "$@")
export OCTFM_STARTED="${OCTFM_STARTED:-$(date +%Y%m%d-%H%M%S)}"
# The supervisor takes the place of this shell: its pid is the one to signal.
exec "${supervisor[@]}" -- "${command[@]}"
