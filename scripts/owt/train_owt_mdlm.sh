#!/usr/bin/env bash
# MDLM on OpenWebText: the teacher of all that follows -> outputs/owt/mdlm.ckpt
# Not needed with the published weights: give kuleshov-group/mdlm-owt as ckpt to the other scripts.
#
#   bash scripts/owt/train_owt_mdlm.sh [key=value ...]
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments -- "$@"
pretrain mdlm algo=imdm "${classical[@]}" sampling.steps=1,2,4,8,128
