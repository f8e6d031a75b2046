#!/usr/bin/env bash
# Pairs of noise and text that Duo writes on OpenWebText, for its rectification -> reflow_data/owt/duo
# The same command goes on where it stopped.
#
#   bash scripts/owt/datagen_owt_duo.sh [ckpt] [folder] [steps] [samples] [key=value ...]
#   defaults: outputs/owt/duo.ckpt reflow_data/owt/duo 1024 100000
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt/duo.ckpt folder=reflow_data/owt/duo steps=1024 samples=100000 -- "$@"
datagen 32 algo=duo_base
