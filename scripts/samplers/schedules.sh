#!/usr/bin/env bash
# How many masks a call unmasks: uniform, cosine and measured schedules (sampling.schedule) of the quickstart's
# MDLM, in spread and in random order, at several temperatures; perplexity beside entropy, one table and figure.
#
#   bash scripts/samplers/schedules.sh [key=value ...]
#
# QUICKSTART_DIR (default outputs/quickstart): where the quickstart's ar and mdlm are; the frontier goes into its
# folder schedules.
set -euo pipefail
if [ "${1:-}" = "--help" ]; then
    sed -n '2,8p' "$0" | cut -c3-
    exit 0
fi
source "$(dirname "$0")/../setup_env.sh"
out=${QUICKSTART_DIR:-outputs/quickstart}
for order in spread random; do
    for schedule in uniform cosine auto; do
        "$PYTHON" main.py experiment=pydoc_mdlm mode=frontier name=schedules checkpointing.save_dir="$out/schedules" \
            frontier.checkpoints="mdlm:$out/mdlm/checkpoints/last.ckpt" frontier.path="$out/schedules" \
            frontier.steps=2,4,8,16 frontier.temperatures=0.7,0.85,1.0 sampling.num_sample_batches=2 \
            sampling.order=$order sampling.schedule=$schedule eval.compute_generative_perplexity=True \
            eval.gen_ppl_eval_model_name_or_path="$out/ar/checkpoints/last.ckpt" "$@"
    done
done
