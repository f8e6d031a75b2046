#!/usr/bin/env bash
# Duo without its curriculum (uniform noise) on OpenWebText -> outputs/owt/duo_base.ckpt
#
#   bash scripts/owt/train_owt_duo_base.sh [key=value ...]
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments -- "$@"
pretrain duo_base algo=duo_base sampling.steps=1,2,4,8,128
