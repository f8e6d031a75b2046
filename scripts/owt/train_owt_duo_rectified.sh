#!/usr/bin/env bash
# Duo trained on its own pairs on OpenWebText -> outputs/owt/duo_rectified.ckpt. First: datagen_owt_duo.sh
# No published settings: those of ReDi.
#
#   bash scripts/owt/train_owt_duo_rectified.sh [ckpt] [folder] [key=value ...]
#   defaults: outputs/owt/duo.ckpt reflow_data/owt/duo
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt/duo.ckpt folder=reflow_data/owt/duo -- "$@"
rectify duo_rectified 50001 algo=rectification sampling.steps=1,2,4,8,128
