#!/usr/bin/env bash
# MDLM on packed LM1B: the teacher of all that follows -> outputs/lm1b/mdlm.ckpt
# An IMDM with one mask (algo.as_mdlm): the weights, loss and distribution of MDLM.
#
#   bash scripts/lm1b/train_lm1b_mdlm.sh [key=value ...]
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments -- "$@"
pretrain mdlm algo=imdm "${classical[@]}" sampling.steps=1,2,4,8,128
