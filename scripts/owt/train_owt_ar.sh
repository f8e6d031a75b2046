#!/usr/bin/env bash
# The autoregressive baseline on OpenWebText -> outputs/owt/ar.ckpt
#
#   bash scripts/owt/train_owt_ar.sh [key=value ...]
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments -- "$@"
pretrain ar algo=ar
