#!/usr/bin/env bash
# D3PM (absorbing) on OpenWebText -> outputs/owt/d3pm.ckpt
#
#   bash scripts/owt/train_owt_d3pm.sh [key=value ...]
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments -- "$@"
pretrain d3pm algo=d3pm sampling.steps=1,2,4,8,128
