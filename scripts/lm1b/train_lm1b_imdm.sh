#!/usr/bin/env bash
# IMDM on packed LM1B, infinite masks from scratch -> outputs/lm1b/imdm.ckpt
#
#   bash scripts/lm1b/train_lm1b_imdm.sh [key=value ...]
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments -- "$@"
pretrain imdm algo=imdm "${masked[@]}" sampling.steps=1,2,4,8,128
