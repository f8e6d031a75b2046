#!/usr/bin/env bash
# SEDD (absorbing) on OpenWebText -> outputs/owt/sedd.ckpt
#
#   bash scripts/owt/train_owt_sedd.sh [key=value ...]
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments -- "$@"
pretrain sedd algo=sedd sampling.steps=1,2,4,8,128
