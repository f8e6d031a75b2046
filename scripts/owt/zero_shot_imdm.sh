#!/usr/bin/env bash
# Perplexity (a bound) of IMDM, trained on OpenWebText, on eight other data sets
# -> results/owt/ppl/IMDM-<data>-gpt2.json, a table in IMDM-zero_shot-gpt2.md
# A set that cannot be had stops nothing and is told at the end; zero_shot.datasets=ptb,lambada takes some.
#
#   bash scripts/owt/zero_shot_imdm.sh [ckpt] [noise_dim] [key=value ...]
#   defaults: outputs/owt/imdm.ckpt 768
set -euo pipefail
source "$(dirname "$0")/../common.sh"
arguments ckpt=outputs/owt/imdm.ckpt noise_dim=768 -- "$@"
infinite_masks 1.0 "$noise_dim"
zero_shot IMDM algo=imdm "${infinite[@]}"
