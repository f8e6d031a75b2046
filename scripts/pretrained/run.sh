#!/usr/bin/env bash
# A pretrained encoder of 22.6M parameters as a few-step writer, on a CPU and the text that ships with Python:
# MDLM from its weights and from fresh ones, then IM-SDTT and IM-ReDi with low-rank adapters from the former.
# A second run goes on where the first stopped. Table and figure: docs/pretrained.md.
#
#   bash scripts/pretrained/run.sh [key=value ...]     overrides go to every command
#
# PRETRAINED_DIR (default outputs/pretrained) is where everything is written.
set -euo pipefail
if [ "${1:-}" = "--help" ]; then
    sed -n '2,8p' "$0" | cut -c3-
    exit 0
fi
source "$(dirname "$0")/../setup_env.sh"
export TOKENIZERS_PARALLELISM=false
dir=${PRETRAINED_DIR:-outputs/pretrained}
mkdir -p "$dir"
"$PYTHON" scripts/pretrained/prepare.py "$dir"

common="model=hf model.length=64 data.eos=sep data.cache_dir=$dir/cache wandb=null
    loader.eval_global_batch_size=64 loader.num_workers=0 eval.compute_generative_perplexity=False
    eval.generate_samples=False trainer.num_sanity_val_steps=0 trainer.limit_val_batches=4
    trainer.log_every_n_steps=20 trainer.enable_progress_bar=False lr_scheduler.num_warmup_steps=20
    training.ema=0.98 callbacks=[checkpoint_every_n_steps] callbacks.checkpoint_every_n_steps.save_top_k=1
    callbacks.checkpoint_every_n_steps.every_n_train_steps=100"
# shellcheck disable=SC2086
run() { "$PYTHON" main.py $common "$@"; }

mdlm="algo=mdlm training.loss_type=low_var loader.global_batch_size=16 trainer.max_steps=${STEPS:-120}
    trainer.val_check_interval=20"
for start in pretrained scratch; do
    # shellcheck disable=SC2086
    run data=pydoc model.path="$dir/$start" $mdlm optim.lr=3e-4 checkpointing.save_dir="$dir/mdlm_$start" "${@}"
done

# Adapters belong to a model in a folder: the MDLM becomes one.
run mode=export data=pydoc algo=mdlm model.path="$dir/pretrained" export.path="$dir/base" \
    eval.checkpoint_path="$dir/mdlm_pretrained/checkpoints/last.ckpt" "${@}"
lora="model.path=$dir/base lora.rank=16 optim.lr=1e-3"
# shellcheck disable=SC2086
run $lora data=pydoc algo=im-sdtt loader.global_batch_size=16 trainer.max_steps=45 trainer.val_check_interval=15 \
    algo.orig_num_sampling_steps=32 algo.min_num_sampling_steps=8 algo.grow_dt_every=15 \
    checkpointing.save_dir="$dir/imsdtt" "${@}"
# shellcheck disable=SC2086
run $lora data=pydoc mode=generate_reflow_dataset algo=im-sdtt sampling.steps=8 reflow.num_reflow_samples=128 \
    loader.eval_batch_size=32 reflow.save_path="$dir/pairs" \
    eval.checkpoint_path="$dir/imsdtt/checkpoints/last.ckpt" "${@}"
# shellcheck disable=SC2086
run $lora algo=im-redi data=reflow-dataset-general reflow.save_path="$dir/pairs" \
    training.finetune_path="$dir/imsdtt/checkpoints/last.ckpt" loader.global_batch_size=16 \
    trainer.max_steps=45 trainer.val_check_interval=15 checkpointing.save_dir="$dir/imredi" "${@}"

for name in mdlm imsdtt imredi; do
    algo=${name/im/im-} run_dir=$dir/$name adapters="$lora"
    if [ "$name" = mdlm ]; then run_dir=$dir/mdlm_pretrained adapters="model.path=$dir/pretrained"; fi
    # shellcheck disable=SC2086
    run $adapters mode=sample_eval data=pydoc algo="$algo" sampling.steps=1,2,4,8 loader.eval_batch_size=32 \
        sampling.num_sample_batches=1 eval.checkpoint_path="$run_dir/checkpoints/last.ckpt" \
        eval.generated_samples_path="$dir/$name.json" "${@}"
done
"$PYTHON" scripts/pretrained/report.py "$dir"
