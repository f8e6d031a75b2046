#!/usr/bin/env bash
# Pairs of noise and text that IM-SDTT writes on OpenWebText (860M parameters) -> reflow_data/owt_large/imsdtt_noisedim2048
# The same command goes on where it stopped.
#
#   bash scripts/owt_large/datagen_owt_imsdtt.sh [ckpt] [folder] [steps] [samples] [noise_dim] [key=value ...]
#   defaults: outputs/owt_large/imsdtt_noisedim2048.ckpt reflow_data/owt_large/imsdtt_noisedim2048 1024 100000 2048
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt_large/imsdtt_noisedim2048.ckpt folder=reflow_data/owt_large/imsdtt_noisedim2048 \
    steps=1024 samples=100000 noise_dim=2048 -- "$@"
infinite_masks 1.0 "$noise_dim"
datagen 32 algo=imdm "${infinite[@]}"
