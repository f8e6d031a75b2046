#!/usr/bin/env bash
# Pairs of noise and text that MDLM writes on LM1B -> reflow_data/lm1b/mdlm, for ReDi and IM-ReDi
# The same command goes on where it stopped.
#
#   bash scripts/lm1b/datagen_lm1b_mdlm.sh [ckpt] [folder] [steps] [samples] [key=value ...]
#   defaults: outputs/lm1b/mdlm.ckpt reflow_data/lm1b/mdlm 1024 100000
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/mdlm.ckpt folder=reflow_data/lm1b/mdlm steps=1024 samples=100000 -- "$@"
datagen 128 algo=imdm "${classical[@]}"
