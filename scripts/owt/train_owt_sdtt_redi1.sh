#!/usr/bin/env bash
# SDTT-ReDi1 on OpenWebText, the classical twin of train_owt_imsdtt_redi1.sh
# -> outputs/owt/sdtt_redi1.ckpt. First: datagen_owt_sdtt.sh
#
#   bash scripts/owt/train_owt_sdtt_redi1.sh [ckpt] [folder] [key=value ...]
#   defaults: outputs/owt/sdtt.ckpt reflow_data/owt/sdtt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt/sdtt.ckpt folder=reflow_data/owt/sdtt -- "$@"
rectify sdtt_redi1 50001 algo=im-redi "${classical[@]}" sampling.steps=1,2,4,8,32,128
