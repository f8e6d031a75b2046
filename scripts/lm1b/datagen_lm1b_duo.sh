#!/usr/bin/env bash
# Pairs of noise and text that Duo writes on packed LM1B, for its rectification -> reflow_data/lm1b/duo
# The same command goes on where it stopped.
#
#   bash scripts/lm1b/datagen_lm1b_duo.sh [ckpt] [folder] [steps] [samples] [key=value ...]
#   defaults: outputs/lm1b/duo.ckpt reflow_data/lm1b/duo 1024 100000
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/lm1b/duo.ckpt folder=reflow_data/lm1b/duo steps=1024 samples=100000 -- "$@"
datagen 128 algo=duo_base
