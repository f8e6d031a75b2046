#!/usr/bin/env bash
# Pairs of noise and text that SDTT writes on OpenWebText -> reflow_data/owt/sdtt
# The same command goes on where it stopped.
#
#   bash scripts/owt/datagen_owt_sdtt.sh [ckpt] [folder] [steps] [samples] [key=value ...]
#   defaults: outputs/owt/sdtt.ckpt reflow_data/owt/sdtt 1024 100000
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt/sdtt.ckpt folder=reflow_data/owt/sdtt steps=1024 samples=100000 -- "$@"
datagen 32 algo=imdm "${classical[@]}"
