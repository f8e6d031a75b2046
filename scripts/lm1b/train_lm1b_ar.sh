#!/usr/bin/env bash
# The autoregressive baseline on packed LM1B -> outputs/lm1b/ar.ckpt
#
#   bash scripts/lm1b/train_lm1b_ar.sh [key=value ...]
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments -- "$@"
pretrain ar algo=ar
