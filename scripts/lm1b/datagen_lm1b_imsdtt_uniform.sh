#!/usr/bin/env bash
# Pairs of noise and text that IM-SDTT writes on LM1B -> reflow_data/lm1b/imsdtt_uniform
# The same command goes on where it stopped.
#
#   bash scripts/lm1b/datagen_lm1b_imsdtt_uniform.sh [ckpt] [folder] [steps] [samples] [noise_scale] [noise_dim] [key=value ...]
#   defaults: outputs/lm1b/imsdtt_uniform.ckpt reflow_data/lm1b/imsdtt_uniform 1024 100000 1.0 768
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/imsdtt_uniform.ckpt folder=reflow_data/lm1b/imsdtt_uniform steps=1024 \
    samples=100000 noise_scale=1.0 noise_dim=768 -- "$@"
infinite_masks "$noise_scale" "$noise_dim"
datagen 128 algo=imdm "${infinite[@]}"
