#!/usr/bin/env bash
# IMDM on OpenWebText, infinite masks from scratch -> outputs/owt/imdm.ckpt
#
#   bash scripts/owt/train_owt_imdm.sh [noise_dim] [key=value ...]
#   defaults: 768
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments noise_dim=768 -- "$@"
infinite_masks 1.0 "$noise_dim"
pretrain imdm algo=imdm "${infinite[@]}" sampling.steps=1,2,4,8,128
