#!/usr/bin/env bash
# Coupled distillation on the quickstart's text (docs/coupled.md): evaluator and MDLM, pairs whose noise decides every
# draw, students of several seeds, the ablations, the baselines of the quickstart, perplexity against entropy.
# What is there already is not made again.
#
#   bash scripts/coupled/text.sh [part ...]     parts: base pairs students ablations baselines measure (default: all)
#
# COUPLED_DIR (default outputs/coupled) is where everything is written; its ar/ and mdlm/ may be those of a quickstart.
# PAIRS (4096), CALLS (16), TEMPERATURE (0.85), UPDATES (600), SEEDS ("1 2 3") change the sizes.
set -euo pipefail
if [ "${1:-}" = "--help" ]; then
    sed -n '2,10p' "$0" | cut -c3-
    exit 0
fi
source "$(dirname "$0")/../setup_env.sh"
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
out="${COUPLED_DIR:-outputs/coupled}"
pairs="$out/pairs"
updates="${UPDATES:-600}"

run() { # experiment, folder, words
    local experiment=$1 name=$2
    shift 2
    echo "\$ python main.py experiment=pydoc_$experiment name=$name $*"
    "$PYTHON" main.py "experiment=pydoc_$experiment" "name=$name" "checkpointing.save_dir=$out/$name" "$@"
}

weights() { echo "$out/$1/checkpoints/last.ckpt"; }

base() {
    run mdlm mdlm
    run ar ar
}

make_pairs() {
    run mdlm mdlm mode=generate_reflow_dataset "eval.checkpoint_path=$(weights mdlm)" sampling.predictor=coupled \
        "sampling.steps=${CALLS:-16}" "sampling.temperature=${TEMPERATURE:-0.85}" reflow.perturbed_rect=False \
        "reflow.num_reflow_samples=${PAIRS:-4096}" loader.eval_batch_size=256 "reflow.save_path=$pairs"
}

student() { # folder, words
    local name=$1
    shift
    run coupled "$name" "training.finetune_path=$(weights mdlm)" "reflow.save_path=$pairs" \
        "trainer.max_steps=$updates" "trainer.val_check_interval=$updates" "$@"
}

students() {
    for seed in ${SEEDS:-1 2 3}; do student "coupled$seed" "seed=$seed"; done
}

ablations() {
    student apart algo.ignore_seed=True
    student input_only algo.output_noise=False
    student no_proposal algo.proposal=False
}

distilled() { # prefix, words: the quickstart's SDTT and ReDi
    local sdtt="${1}sdtt" redi="${1}redi"
    shift
    run imsdtt "$sdtt" "training.finetune_path=$(weights mdlm)" "$@"
    run imsdtt "$sdtt" mode=generate_reflow_dataset "eval.checkpoint_path=$(weights "$sdtt")" sampling.steps=32 \
        reflow.num_reflow_samples=320 loader.eval_batch_size=256 "reflow.save_path=$out/pairs_$sdtt" "$@"
    run imredi "$redi" "training.finetune_path=$(weights "$sdtt")" "reflow.save_path=$out/pairs_$sdtt" "$@"
}

baselines() {
    distilled im
    distilled "" algo.as_mdlm=True
}

measure() { # every model that is there, in spread order
    local name
    for name in mdlm sdtt redi imsdtt imredi coupled1 coupled2 coupled3 apart input_only no_proposal; do
        [ -e "$(weights "$name")" ] || continue
        local experiment=mdlm words=(sampling.order=spread frontier.temperatures=0.6,0.7,0.8,0.9,1)
        case "$name" in
            sdtt | redi) experiment=im$name words+=(algo.as_mdlm=True) ;;
            imsdtt | imredi) experiment=$name ;;
            mdlm) ;;
            *) experiment=coupled words=(frontier.temperatures=0.8,0.9,1) ;;
        esac
        run "$experiment" "$name" mode=frontier data=pydoc "frontier.checkpoints=$name:$(weights "$name")" \
            frontier.steps=1,2,4 eval.compute_generative_perplexity=True "frontier.path=$out/frontier" "${words[@]}" sampling.num_sample_batches=4 \
            "eval.gen_ppl_eval_model_name_or_path=$(weights ar)" eval.perplexity_batch_size=32
    done
}

if [ $# = 0 ]; then set -- base pairs students ablations baselines measure; fi
for part in "$@"; do
    case "$part" in
        pairs) make_pairs ;;
        base | students | ablations | baselines | measure) "$part" ;;
        *) echo "error: $part: no such part; use base pairs students ablations baselines measure" >&2 && exit 2 ;;
    esac
done
