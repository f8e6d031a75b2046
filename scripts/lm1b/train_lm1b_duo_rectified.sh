#!/usr/bin/env bash
# Duo trained on its own pairs on packed LM1B -> outputs/lm1b/duo_rectified.ckpt. First: datagen_lm1b_duo.sh
# No published settings: those of ReDi.
#
#   bash scripts/lm1b/train_lm1b_duo_rectified.sh [ckpt] [folder] [key=value ...]
#   defaults: outputs/lm1b/duo.ckpt reflow_data/lm1b/duo
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/duo.ckpt folder=reflow_data/lm1b/duo -- "$@"
rectify duo_rectified 50001 algo=rectification sampling.steps=1,2,4,8,128
