#!/usr/bin/env bash
# SDTT on OpenWebText, the classical twin of train_owt_imsdtt.sh -> outputs/owt/sdtt.ckpt
# ckpt may be a hub name, like kuleshov-group/mdlm-owt.
#
#   bash scripts/owt/train_owt_sdtt.sh [ckpt] [key=value ...]
#   defaults: outputs/owt/mdlm.ckpt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt/mdlm.ckpt -- "$@"
sdtt sdtt 128 "${classical[@]}" training.load_ema=True sampling.steps=1,2,4,8,32,128 \
    trainer.val_check_interval=1000
