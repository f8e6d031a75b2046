#!/usr/bin/env bash
# IM-SDTT on OpenWebText: MDLM distilled from 1024 steps to 8 in seven rounds
# -> outputs/owt/imsdtt_noisedim<noise_dim>.ckpt
# ckpt may be a hub name, like kuleshov-group/mdlm-owt.
#
#   bash scripts/owt/train_owt_imsdtt.sh [ckpt] [noise_dim] [key=value ...]
#   defaults: outputs/owt/mdlm.ckpt 2048
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt/mdlm.ckpt noise_dim=2048 -- "$@"
infinite_masks 1.0 "$noise_dim"
sdtt "imsdtt_noisedim$noise_dim" 128 "${infinite[@]}" training.load_ema=True sampling.steps=1,2,4,8,32,128 \
    trainer.val_check_interval=1000
