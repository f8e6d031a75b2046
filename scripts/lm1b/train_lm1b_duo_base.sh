#!/usr/bin/env bash
# Duo without its curriculum (uniform noise) on packed LM1B -> outputs/lm1b/duo_base.ckpt
#
#   bash scripts/lm1b/train_lm1b_duo_base.sh [key=value ...]
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments -- "$@"
pretrain duo_base algo=duo_base sampling.steps=1,2,4,8,128
