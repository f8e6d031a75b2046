#!/usr/bin/env bash
# Pairs of noise and text that SDTT writes on LM1B -> reflow_data/lm1b/sdtt
# The same command goes on where it stopped.
#
#   bash scripts/lm1b/datagen_lm1b_sdtt.sh [ckpt] [folder] [steps] [samples] [key=value ...]
#   defaults: outputs/lm1b/sdtt.ckpt reflow_data/lm1b/sdtt 1024 100000
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/sdtt.ckpt folder=reflow_data/lm1b/sdtt steps=1024 samples=100000 -- "$@"
datagen 128 algo=imdm "${classical[@]}"
