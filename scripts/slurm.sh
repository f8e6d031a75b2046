#!/usr/bin/env bash
# Any of the scripts on SLURM, on one node or several, one task a GPU:
#
#   sbatch scripts/slurm.sh scripts/owt/train_owt_imsdtt.sh [arguments ...] [key=value ...]
#   sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 --partition=NAME scripts/slurm.sh scripts/owt/...
#
# Submit it in the folder of the repository. Options of sbatch go before scripts/slurm.sh and win over those
# below; DRY_RUN=1 bash scripts/slurm.sh ... prints what would run.
# Five minutes before the time is over (SIGUSR1) a training writes last.ckpt; it and the making of pairs queue again
# and go on where they stopped. scancel ends a job for good; a training writes last.ckpt there, too.
#SBATCH --job-name=imdm
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=6
#SBATCH --time=24:00:00
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=USR1@300
set -euo pipefail
if [ $# -eq 0 ] || [ "$1" = --help ] || [ "$1" = -h ]; then
    sed -n '2,/^#SBATCH/{/^#SBATCH/d;s/^# \{0,1\}//;p;}' "$0"
    exit 0
fi
[ -f "$1" ] || { echo "error: $1: no such script in $PWD; submit in the folder of the repository" >&2; exit 2; }
command=(srun --kill-on-bad-exit=1 bash "$@")
if [ -n "${DRY_RUN:-}" ] && [ "$DRY_RUN" != 0 ]; then
    echo "${command[*]}"
    exit 0
fi
status=0
"${command[@]}" || status=$?
case "$status $(basename "$1")" in
"138 train_"* | "138 datagen_"*) scontrol requeue "$SLURM_JOB_ID" ;;  # 128 + SIGUSR1; these go on, others begin anew
esac
exit "$status"
