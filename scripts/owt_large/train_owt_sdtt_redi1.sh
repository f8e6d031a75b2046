#!/usr/bin/env bash
# SDTT-ReDi1 on OpenWebText (860M parameters), the classical twin of train_owt_imsdtt_redi1.sh
# -> outputs/owt_large/sdtt_redi1.ckpt. First: datagen_owt_sdtt.sh
#
#   bash scripts/owt_large/train_owt_sdtt_redi1.sh [ckpt] [folder] [key=value ...]
#   defaults: outputs/owt_large/sdtt.ckpt reflow_data/owt_large/sdtt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt_large/sdtt.ckpt folder=reflow_data/owt_large/sdtt -- "$@"
rectify sdtt_redi1 30001 algo=im-redi "${classical[@]}" sampling.steps=1,2,4,8,32,128
