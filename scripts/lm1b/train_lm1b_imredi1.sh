#!/usr/bin/env bash
# IM-ReDi on LM1B: MDLM trained on its own pairs, with fresh mask noise -> outputs/lm1b/imredi1.ckpt
# First: datagen_lm1b_mdlm.sh
#
#   bash scripts/lm1b/train_lm1b_imredi1.sh [ckpt] [folder] [key=value ...]
#   defaults: outputs/lm1b/mdlm.ckpt reflow_data/lm1b/mdlm
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/mdlm.ckpt folder=reflow_data/lm1b/mdlm -- "$@"
rectify imredi1 60000 algo=im-redi "${masked[@]}" algo.ignore_seed=True sampling.steps=1,2,4,8,32,128
