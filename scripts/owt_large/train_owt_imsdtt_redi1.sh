#!/usr/bin/env bash
# IM-SDTT-ReDi1 on OpenWebText (860M parameters): IM-SDTT trained on its own pairs, with their mask noise
# -> outputs/owt_large/imsdtt_noisedim<noise_dim>_redi1.ckpt. First: datagen_owt_imsdtt.sh
#
#   bash scripts/owt_large/train_owt_imsdtt_redi1.sh [ckpt] [folder] [noise_dim] [key=value ...]
#   defaults: outputs/owt_large/imsdtt_noisedim2048.ckpt reflow_data/owt_large/imsdtt_noisedim2048 2048
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt_large/imsdtt_noisedim2048.ckpt folder=reflow_data/owt_large/imsdtt_noisedim2048 \
    noise_dim=2048 -- "$@"
infinite_masks 1.0 "$noise_dim"
rectify "imsdtt_noisedim${noise_dim}_redi1" 30001 algo=im-redi "${infinite[@]}" sampling.steps=1,2,4,8,32,128
