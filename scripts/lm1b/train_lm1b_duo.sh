#!/usr/bin/env bash
# Duo on packed LM1B: half of the training in its curriculum, at temperature 0.001 -> outputs/lm1b/duo.ckpt
#
#   bash scripts/lm1b/train_lm1b_duo.sh [key=value ...]
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments -- "$@"
pretrain duo algo=duo algo.gamma_min=-3.5 algo.gamma_max=-1.75 algo.curriculum_start=0 \
    algo.curriculum_end=500000 algo.gumbel_tau_log10_start=-3 algo.gumbel_tau_log10_end=-3 \
    sampling.steps=1,2,4,8,128
