#!/usr/bin/env bash
# SEDD (absorbing) on packed LM1B -> outputs/lm1b/sedd.ckpt
#
#   bash scripts/lm1b/train_lm1b_sedd.sh [key=value ...]
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments -- "$@"
pretrain sedd algo=sedd sampling.steps=1,2,4,8,128
