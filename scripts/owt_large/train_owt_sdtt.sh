#!/usr/bin/env bash
# SDTT on OpenWebText (860M parameters), the classical twin of train_owt_imsdtt.sh -> outputs/owt_large/sdtt.ckpt
# It starts from the raw weights; training.load_ema=True takes the averaged ones.
#
#   bash scripts/owt_large/train_owt_sdtt.sh [ckpt] [key=value ...]
#   defaults: outputs/owt_large/mdlm.ckpt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt_large/mdlm.ckpt -- "$@"
sdtt sdtt 128 "${classical[@]}" sampling.steps=1,2,4,8,32,128 trainer.val_check_interval=1000
