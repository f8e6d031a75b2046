#!/usr/bin/env bash
# IM-SDTT on OpenWebText (860M parameters): MDLM distilled from 1024 steps to 8 in seven rounds
# -> outputs/owt_large/imsdtt_noisedim<noise_dim>.ckpt
# It starts from the raw weights; training.load_ema=True takes the averaged ones.
#
#   bash scripts/owt_large/train_owt_imsdtt.sh [ckpt] [noise_dim] [key=value ...]
#   defaults: outputs/owt_large/mdlm.ckpt 2048
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt_large/mdlm.ckpt noise_dim=2048 -- "$@"
infinite_masks 1.0 "$noise_dim"
sdtt "imsdtt_noisedim$noise_dim" 128 "${infinite[@]}" sampling.steps=1,2,4,8,32,128 \
    trainer.val_check_interval=1000
