#!/usr/bin/env bash
# Discrete consistency distillation of Duo on packed LM1B, in five rounds -> outputs/lm1b/duo_dcd.ckpt
# It starts from the raw weights and averages anew with 0.999; training.load_ema=True takes the averaged
# weights, and their decay.
#
#   bash scripts/lm1b/train_lm1b_duo_dcd.sh [ckpt] [key=value ...]
#   defaults: outputs/lm1b/duo.ckpt
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/duo.ckpt -- "$@"
train duo_dcd 128 128 "${data[@]}" algo=distillation algo.T=512 training.finetune_path="$ckpt" \
    training.ema=0.999 trainer.max_steps=50000 optim.lr=6e-5 lr_scheduler.num_warmup_steps=500 \
    sampling.steps=1,2,4,8,32,128
