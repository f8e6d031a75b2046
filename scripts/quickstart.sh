#!/usr/bin/env bash
# Trains a masked diffusion model (MDLM) and an infinite-mask model (IMDM) on the English text that ships
# with Python, evaluates both, lets them write, and draws one table and one figure. Needs no GPU and, after
# the installation, no network. A second run goes on where the first stopped.
#
#   bash scripts/quickstart.sh [--help] [key=value ...]     overrides go to every training and evaluation
#
# QUICKSTART_DIR (default outputs/quickstart) is where everything is written.
set -euo pipefail
if [ "${1:-}" = "--help" ]; then
    sed -n '2,9p' "$0" | cut -c3-
    exit 0
fi
source "$(dirname "$0")/setup_env.sh"
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
out=${QUICKSTART_DIR:-outputs/quickstart}

# fresh RESULT CHECKPOINT: whether the result is there and not older than the checkpoint it belongs to
# (with overrides nobody knows: then it is made anew).
overrides=$#
fresh() { [ "$overrides" -eq 0 ] && [ -e "$1" ] && [ ! "$2" -nt "$1" ]; }

for name in mdlm imdm; do
    checkpoint=$out/$name/checkpoints/last.ckpt
    results=$out/$name/results
    run() { "$PYTHON" main.py experiment="pydoc_$name" checkpointing.save_dir="$out/$name" "$@"; }
    evaluate() { run eval.checkpoint_path="$checkpoint" eval.generated_samples_path="$1" "${@:2}"; }

    echo; echo "== $name: training"
    run "$@"
    echo "== $name: bits per character of the validation text"
    fresh "$results/ppl.json" "$checkpoint" ||
        evaluate "$results/ppl.json" mode=ppl_eval eval.nelbo=count "$@"
    echo "== $name: sampling in 1, 4, 16 and 64 steps"
    fresh "$results/ancestral.json" "$checkpoint" ||
        evaluate "$results/ancestral.json" mode=sample_eval sampling.steps=1,4,16,64 sampling.num_sample_batches=2 "$@"
    echo "== $name: sampling by first hitting"
    fresh "$results/first_hitting.json" "$checkpoint" ||
        evaluate "$results/first_hitting.json" mode=sample_eval sampling.predictor=first_hitting \
            sampling.steps=128 sampling.num_sample_batches=2 "$@"
done

echo; echo "== Summary"
"$PYTHON" scripts/quickstart_report.py "$out"
