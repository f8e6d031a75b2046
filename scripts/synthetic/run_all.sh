#!/usr/bin/env bash
# Why infinite masks are needed: sequences that repeat one symbol, in few steps. MDLM; SDTT and IM-SDTT; ReDi and
# IM-ReDi on pairs from pure noise, with 2, 8, 64 and infinitely many masks (ReDi is the one mask).
# imredi_any has pairs at any time instead. Then all are measured: tables and figures.
# A second run goes on where the first stopped.
#
#   bash scripts/synthetic/run_all.sh [--paper] [--help] [key=value ...]     overrides go to every command
#
# 32 symbols, length 8, for 2 cores; --paper: 50,000 symbols, length 10, for a GPU.
# SYNTHETIC_DIR (default outputs/synthetic, with --paper outputs/synthetic_paper) is where everything is written.
# SYNTHETIC_SAMPLES (default 4096) fresh samples are measured for every number of steps.
set -euo pipefail
paper=0
case "${1:-}" in
--help) sed -n '2,11p' "$0" | cut -c3-; exit 0 ;;
--paper) paper=1; shift ;;
esac
overrides=("$@")
source "$(dirname "$0")/../setup_env.sh"
export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM=false
samples=${SYNTHETIC_SAMPLES:-4096}
if [ "$paper" -eq 0 ]; then
    out=${SYNTHETIC_DIR:-outputs/synthetic} symbols=32 length=8 pairs=1000 batch=128
    size=() long=()
else
    out=${SYNTHETIC_DIR:-outputs/synthetic_paper} symbols=50000 length=10 pairs=100000 batch=512
    size=(model.hidden_size=128 model.n_blocks=4 model.n_heads=4 model.cond_dim=128 model.noise_dim=128
        model.length=10 loader.global_batch_size=$batch)
    long=(trainer.max_steps=50000 trainer.val_check_interval=10000
        callbacks.checkpoint_every_n_steps.every_n_train_steps=5000)
fi

say() { echo; echo "== $*"; }

# run NAME EXPERIMENT ARGUMENTS...: one command about the model NAME; what the user typed comes last.
run() {
    "$PYTHON" main.py experiment="align_$2" name="$1" checkpointing.save_dir="$out/$1" ${size[@]+"${size[@]}"} \
        "${@:3}" ${overrides[@]+"${overrides[@]}"}
}

# train NAME EXPERIMENT ARGUMENTS...: as run, at the length of the setting.
train() { run "$1" "$2" ${long[@]+"${long[@]}"} "${@:3}"; }

text=(data.vocab_size="$symbols")
start=(training.finetune_path="$out/mdlm/checkpoints/last.ckpt")
rounds=()
if [ "$paper" -eq 1 ]; then rounds=(algo.grow_dt_every=10000); fi

say "mdlm: masked diffusion"
train mdlm mdlm "${text[@]}"
say "imsdtt, sdtt: distillation from 32 steps to 1"
train imsdtt imsdtt "${text[@]}" "${start[@]}" ${rounds[@]+"${rounds[@]}"}
train sdtt imsdtt "${text[@]}" "${start[@]}" ${rounds[@]+"${rounds[@]}"} algo.as_mdlm=True
say "imsdtt_bwd, sdtt_bwd: the same with the reverse divergence, which seeks one mode"
train imsdtt_bwd imsdtt "${text[@]}" "${start[@]}" ${rounds[@]+"${rounds[@]}"} algo.distill_mode=kl-bwd
train sdtt_bwd imsdtt "${text[@]}" "${start[@]}" ${rounds[@]+"${rounds[@]}"} algo.distill_mode=kl-bwd \
    algo.as_mdlm=True

# make_pairs NAME ARGUMENTS...: pairs by mdlm, one symbol a call.
make_pairs() {
    run mdlm mdlm "${text[@]}" mode=generate_reflow_dataset \
        eval.checkpoint_path="$out/mdlm/checkpoints/last.ckpt" reflow.save_path="$out/$1" \
        sampling.predictor=first_hitting sampling.steps="$length" "${@:2}"
}
say "pairs: pure noise and what mdlm writes from it; pairs_any: from text at any noise"
make_pairs pairs reflow.perturbed_rect=False reflow.num_reflow_samples="$pairs"
make_pairs pairs_any reflow.num_reflow_samples=$((6 * pairs))
say "redi, imredi: rectification on the pairs"
train redi imredi "${start[@]}" reflow.save_path="$out/pairs" algo.as_mdlm=True
train imredi imredi "${start[@]}" reflow.save_path="$out/pairs"
train imredi_any imredi "${start[@]}" reflow.save_path="$out/pairs_any" loader.global_batch_size=$((3 * batch))
for masks in 2 8 64; do
    train "imredi_$masks" imredi "${start[@]}" reflow.save_path="$out/pairs" algo.num_mask="$masks"
done

say "Measuring"
models=(mdlm {,im}sdtt{,_bwd} redi imredi{,_any,_2,_8,_64})
"$PYTHON" scripts/synthetic/measure.py "$samples" "${models[@]/#/$out/}"
say "Summary"
"$PYTHON" scripts/synthetic/report.py "$out"
