#!/usr/bin/env bash
# Pairs of noise and text that SDTT writes on OpenWebText (860M parameters) -> reflow_data/owt_large/sdtt
# The same command goes on where it stopped.
#
#   bash scripts/owt_large/datagen_owt_sdtt.sh [ckpt] [folder] [steps] [samples] [key=value ...]
#   defaults: outputs/owt_large/sdtt.ckpt reflow_data/owt_large/sdtt 1024 100000
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt_large/sdtt.ckpt folder=reflow_data/owt_large/sdtt steps=1024 samples=100000 -- "$@"
datagen 32 algo=imdm "${classical[@]}"
