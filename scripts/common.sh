# Sourced by the scripts in lm1b/, owt/ and owt_large/: their arguments, common settings, and how a command is
# launched. A script is its head comment (its --help), a line that declares its arguments, and one call of a
# function below.

# ENVIRONMENT. Arguments end at the first word with "=": from there on everything goes to main.py and wins.
# Paths are relative to the folder of the repository. An empty argument ('') means the default.
#   DRY_RUN=1    print the commands, run nothing
#   PYTHON       the interpreter; default .venv/bin/python where it is, else python
#   NGPUS        devices of this machine; default: those of CUDA_VISIBLE_DEVICES or nvidia-smi, else 1
#   NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (29500)    several machines by torchrun: the same on each of them
# On SLURM: sbatch scripts/slurm.sh SCRIPT ARGUMENTS... (its --help says more).

set -euo pipefail
script=$(cd "$(dirname "$0")" && pwd)/$(basename "$0")
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() { echo "error: $*" >&2; exit 2; }

# arguments NAME=DEFAULT... -- WORDS...: sets the variables NAME and the array overrides from a script's words.
arguments() {
    local declared=() one value
    while [ "$1" != -- ]; do declared+=("$1"); shift; done
    shift
    case "${1:-}" in -h | --help) usage; exit 0 ;; esac
    for one in ${declared[@]+"${declared[@]}"}; do
        value=
        case "${1:-=}" in
        *=*) ;;
        -*) fail "$1: no such flag; --help shows what there is" ;;
        *) value=$1 ;;
        esac
        if [ $# -gt 0 ] && [[ $1 != *=* ]]; then shift; fi
        printf -v "${one%%=*}" %s "${value:-${one#*=}}"
    done
    if [ $# -gt 0 ] && [[ $1 != *=* ]]; then
        fail "$1: one argument too many (there are ${#declared[@]}); settings are typed key=value"
    fi
    overrides=("$@")
}

usage() {
    sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p;}' "$script"
    echo
    sed -n '/^# ENVIRONMENT/,/^$/{/^#/!d;s/^# \{0,1\}//;s/^ENVIRONMENT. //;p;}' scripts/common.sh
}

# The machine ----------------------------------------------------------------------------------------

visible_devices() {
    local devices=${CUDA_VISIBLE_DEVICES-unset}
    if [ "$devices" = unset ]; then
        devices=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU') || devices=1
    else
        devices=$(tr ',' '\n' <<<"$devices" | grep -c .) || devices=1
    fi
    echo "$devices"
}

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python
    if [ -x .venv/bin/python ]; then PYTHON=.venv/bin/python; fi
fi
launcher=("$PYTHON")
if [ -n "${SLURM_STEP_ID:-}" ] && [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
    # One task of srun, of which there is one a device: Lightning finds the others.
    NNODES=$SLURM_NNODES NGPUS=$((SLURM_NTASKS / SLURM_NNODES)) rank=$SLURM_PROCID
else
    # Anywhere else on SLURM Lightning would wait for tasks that nobody starts.
    unset SLURM_NTASKS SLURM_PROCID
    NNODES=${NNODES:-1} NGPUS=${NGPUS:-$(visible_devices)} rank=0
    if [ "$NNODES" -gt 1 ]; then
        for name in NODE_RANK MASTER_ADDR; do
            [ -n "${!name:-}" ] || fail "NNODES=$NNODES: give $name as well (torchrun), or use scripts/slurm.sh"
        done
        rank=$NODE_RANK
        launcher+=(-m torch.distributed.run --nnodes="$NNODES" --nproc_per_node="$NGPUS" --node_rank="$NODE_RANK"
            --master_addr="$MASTER_ADDR" --master_port="${MASTER_PORT:-29500}")
    fi
fi

# launch WORDS...: become this command, so that signals reach it; ( ) around it where more follows.
launch() {
    local word line=
    for word in "$@"; do
        case "$word" in
        *[!A-Za-z0-9_./:=,+@%-]* | '') line+=" '${word//\'/\'\\\'\'}'" ;;
        *) line+=" $word" ;;
        esac
    done
    if [ -n "${DRY_RUN:-}" ] && [ "$DRY_RUN" != 0 ]; then
        echo "${line# }"
        return
    fi
    if [ "$rank" = 0 ]; then echo "\$$line" >&2; fi
    export PYTHONUNBUFFERED=1 TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-false}"
    exec "$@"
}

# everywhere WORDS...: main.py on all devices.
everywhere() {
    local nodes=()
    if [ "$NNODES" -gt 1 ]; then nodes=(trainer.num_nodes="$NNODES"); fi
    launch "${launcher[@]}" main.py "$@" trainer.devices="$NGPUS" ${nodes[@]+"${nodes[@]}"} \
        ${overrides[@]+"${overrides[@]}"}
}

# Settings -------------------------------------------------------------------------------------------

# The folder of a script names its data set and its network.
suite=$(basename "$(dirname "$script")")
case "$suite" in
lm1b)
    data=(data=lm1b-wrap model=small model.length=128) cap=(model.softcap=50) label=LM1B
    batch=128 samples_batch=64 samples_batches=16 ;;
owt)
    data=(data=openwebtext-split model=small model.length=1024) cap=() label=openwebtext-split
    batch=32 samples_batch=32 samples_batches=32 ;;
owt_large)
    data=(data=openwebtext-split model=large model.length=1024 model.qk_norm=False) cap=() label=openwebtext-split
    batch=16 samples_batch=32 samples_batches=32 ;;
*) fail "$script: its folder is none of lm1b, owt, owt_large" ;;
esac
pairs=("data=reflow-dataset-general" "${data[@]:1}")

# The masked models, whose algo=... a command adds. One mask and MDLM's reverse step; or infinitely many masks.
masked=(sampling.predictor=ancestral_cache ${cap[@]+"${cap[@]}"} algo.noise_type=rand)
classical=("${masked[@]}" algo.as_mdlm=True sampling.mdlm_posterior=True)

# infinite_masks NOISE_SCALE NOISE_DIM: sets the array infinite.
infinite_masks() { infinite=("${masked[@]}" algo.noise_scale="$1" model.noise_dim="$2"); }

# The steps of a chain -------------------------------------------------------------------------------

# train NAME BATCH GLOBAL WORDS...: GLOBAL sequences a step, at most BATCH at once on a device; the run folder is
# outputs/<suite>/NAME, and at the end of training outputs/<suite>/NAME.ckpt links to its last.ckpt.
train() {
    local size=$2 share=$(($3 / (NGPUS * NNODES)))
    if [ "$share" -ge 1 ] && [ "$share" -lt "$size" ]; then size=$share; fi
    everywhere mode=train name="$1" checkpointing.save_dir="outputs/$suite/\${name}" \
        checkpointing.link_when_done=True loader.global_batch_size="$3" loader.batch_size="$size" \
        loader.eval_batch_size="$2" trainer.log_every_n_steps=50 trainer.limit_val_batches=2 \
        callbacks.checkpoint_every_n_steps.every_n_train_steps=10000 \
        eval.gen_ppl_eval_model_name_or_path=gpt2-large "${@:4}"
}

# pretrain NAME WORDS...: a million steps from scratch.
pretrain() {
    train "$1" "$batch" 512 "${data[@]}" trainer.max_steps=1000000 optim.lr=3e-4 \
        lr_scheduler.num_warmup_steps=2500 "${@:2}"
}

# sdtt NAME GLOBAL WORDS...: seven rounds of 10,000 steps; by the argument ckpt. The loss is that of 16 sequences
# at a time however many a device takes at once, as published.
sdtt() {
    train "$1" 16 "$2" "${data[@]}" algo=im-sdtt algo.loss_slice_rows=16 "${@:3}" training.finetune_path="$ckpt" \
        trainer.max_steps=70001 optim.lr=6e-5 lr_scheduler.num_warmup_steps=500
}

# rectify NAME STEPS WORDS...: training on pairs; by the arguments ckpt, folder.
rectify() {
    train "$1" "$batch" 512 "${pairs[@]}" "${@:3}" reflow.save_path="$folder" training.finetune_path="$ckpt" \
        training.load_ema=True trainer.max_steps="$2" optim.lr=3e-4
}

# datagen BATCH WORDS...: pairs of noise and text; by the arguments ckpt, folder, steps, samples.
datagen() {
    everywhere mode=generate_reflow_dataset "${data[@]}" "${@:2}" loader.eval_batch_size="$1" seed=42 \
        eval.checkpoint_path="$ckpt" reflow.save_path="$folder" \
        reflow.num_reflow_samples="$samples" sampling.steps="$steps"
}

# ppl NAME BATCH WORDS...: perplexity of the validation set; by the argument ckpt.
ppl() {
    everywhere mode=ppl_eval "${data[@]}" "${@:3}" loader.eval_batch_size="$2" eval.checkpoint_path="$ckpt" \
        eval.generated_samples_path="results/$suite/ppl/$1-$label-gpt2.json"
}

# zero_shot NAME WORDS...: perplexity of other data sets, a file each and a table; by the argument ckpt.
zero_shot() {
    local sets=ag_news,scientific_papers_pubmed,scientific_papers_arxiv,lambada,wikitext2,wikitext103,ptb,lm1b-gpt2
    everywhere mode=zero_shot zero_shot.datasets="$sets" "${data[@]}" "${@:2}" data.insert_valid_eos=False \
        loader.eval_batch_size=16 eval.checkpoint_path="$ckpt" \
        eval.generated_samples_path="results/$suite/ppl/$1-{data}-gpt2.json"
}

# written MODE FOLDER NAME BATCH BATCHES WORDS...: samples and their judgement, a file for each number of steps; by
# the arguments steps, ckpt, results. The devices share the batches (rounded up to a multiple of the devices).
written() {
    local count devices=$((NGPUS * NNODES))
    for count in ${steps//,/ }; do
        (everywhere mode="$1" "${data[@]}" "${@:6}" loader.eval_batch_size="$4" \
            sampling.num_sample_batches=$((($5 + devices - 1) / devices)) seed=42 sampling.steps="$count" \
            sampling.temperature=1.0 sampling.noise_removal=ancestral eval.checkpoint_path="$ckpt" \
            eval.gen_ppl_eval_model_name_or_path=gpt2-large \
            eval.generated_samples_path="$results/$2/$count-$3-gpt2.json")
    done
}

# gen_ppl NAME WORDS...; cond_gen_ppl NAME WORDS...: texts from nothing; five continuations of each prefix.
gen_ppl() { written sample_eval_with_tc samples "$1" "$samples_batch" "$samples_batches" "${@:2}"; }
cond_gen_ppl() {
    written cond_sample_eval_with_tc cond_samples "$1" 8 32 cond_sampling.num_cont_per_prefix=5 \
        cond_sampling.prefix_len=50 cond_sampling.seq_len=100 "${@:2}"
}

# mauve FILE: of continuations, on one device; overrides are flags of eval_mauve.py.
mauve() {
    local word flags=()
    for word in ${overrides[@]+"${overrides[@]}"}; do flags+=(--"${word%%=*}" "${word#*=}"); done
    if [ "$rank" = 0 ]; then launch "$PYTHON" eval_mauve.py --generation_path "$1" ${flags[@]+"${flags[@]}"}; fi
}

# baseline ALGO: sets the name of its results and the array model; by the argument ckpt.
baseline() {
    case "$1" in
    ar) name=AR model=(algo=ar) ;;
    sedd) name=SEDD model=(algo=sedd) ;;
    d3pm) name=D3PM model=(algo=d3pm) ;;
    duo_base) name=Duo_base model=(algo=duo_base) ;;
    duo) name=Duo model=(algo=duo_base) ;;  # after its curriculum
    duo_dcd) name=Duo_DCD model=(algo=duo_base) ;;
    duo_rectified) name=Duo_rectified model=(algo=duo_base) ;;
    *) fail "$1: no baseline; one of ar, sedd, d3pm, duo_base, duo, duo_dcd, duo_rectified" ;;
    esac
    ckpt=${ckpt//ALGO/$1}
}
