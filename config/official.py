"""What users of the official programs (IMDM, Duo, ReDi, MDLM) type, in the words of this one.

Three tables: keys that have another name here, values that have, and keys that mean nothing here. A key of
the last kind is dropped only with a value that changes nothing officially either; any other is refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from errors import UserError

# Official key -> key.
ALIASES = {
    "algo.curriculum.start": "algo.curriculum_start",
    "algo.curriculum.end": "algo.curriculum_end",
    "algo.curriculum.gamma_min": "algo.gamma_min",
    "algo.curriculum.gamma_max": "algo.gamma_max",
    "algo.curriculum.gumbel_tau_log10_start": "algo.gumbel_tau_log10_start",
    "algo.curriculum.gumbel_tau_log10_end": "algo.gumbel_tau_log10_end",
    "algo.curriculum.mode": "algo.curriculum_mode",
    "algo.curriculum.top_k": "algo.curriculum_top_k",
    "algo.curriculum.integral_cache_path": "algo.integral_cache_path",
    "algo.ignore_bos": "training.ignore_bos",
    "T": "algo.T",
    "time_conditioning": "algo.time_conditioning",
    "noise.type": "noise",
    "hydra.run.dir": "checkpointing.save_dir",
    "lr_scheduler.warmup_t": "lr_scheduler.num_warmup_steps",
    "lr_scheduler.t_initial": "lr_scheduler.decay_steps",
    "lr_scheduler.lr_min": "lr_scheduler.min_lr",
    "lr_scheduler.warmup_lr_init": "lr_scheduler.first_lr",
    "lr_scheduler.lr_lambda.warmup_steps": "lr_scheduler.num_warmup_steps",
    "lr_scheduler.lr_lambda.n_halve_steps": "lr_scheduler.decay_every",
}

# (official key, value in small letters) -> what is typed here instead.
VALUES = {
    ("mode", "generate_reflow_data"): ("mode=generate_reflow_dataset", "reflow.perturbed_rect=False"),
    ("mode", "generate_reflow_data_with_perturbed_rect"): (
        "mode=generate_reflow_dataset",
        "reflow.perturbed_rect=True",
    ),
    ("model", "small-ar"): ("model=small",),
    ("model", "tiny-ar"): ("model=tiny", "model.hidden_size=512"),  # MDLM's tiny is twice as wide
    ("noise", "loglinear"): ("noise=log-linear",),
    ("sampling.predictor", "ddpm"): ("sampling.predictor=ancestral",),
    ("sampling.predictor", "ddpm_cache"): ("sampling.predictor=ancestral_cache",),
    ("sampling.noise_removal", "true"): ("sampling.noise_removal=greedy",),
    ("sampling.noise_removal", "false"): ("sampling.noise_removal=none",),
    ("algo.num_mask", "-1"): ("algo.num_mask=0",),
    ("algo.curriculum_top_k", "-1"): ("algo.curriculum_top_k=0",),
    ("algo.loss_type", "elbo"): ("training.loss_type=nelbo",),
    ("algo.loss_type", "low_var"): ("training.loss_type=low_var",),
}

# Key that means nothing here -> the values that mean nothing officially either; (): whatever the value.
NEVER, NOTHING = ("false",), ("null", "none")
DROPPED: dict[str, tuple[str, ...]] = {
    "is_di4c": NEVER,
    "*.is_di4c": NEVER,
    "is_di4c_*": (),  # they tune what is_di4c switches on
    "*.is_di4c_*": (),
    "prior": NOTHING,
    "prior.type": NOTHING,
    "prior.*": (),
    "diffusion": ("absorbing_state",),
    "data.modality": ("text",),
    "backbone": ("dit", "hf_dit"),  # a Hugging Face model is known by its path, wherever one is named
    "algo.backbone": ("dit", "hf_dit"),
    "algo.loss_precision": NOTHING,
    "algo.posterior_loss_weight": ("0", "0.0"),
    "algo.curriculum.cache_dir": (),  # these two are of other modes
    "algo.curriculum.n_series_terms": (),
    "sampling.conditional": NEVER,
    "sampling.num_reflow_samples": (),
    "sampling.guid_weight": NOTHING,
    "cond_sampling.cond_type": ("prefix",),
    "training.not_sampling_t": NEVER,
    "training.class_dropout_p": ("0", "0.0", *NOTHING),
    "model.type": ("ddit",),
    "model.causal": (),  # MDLM's autoregressive sizes say so of themselves
    "model.scale_by_sigma": (),  # stored and never read
    "model.embedding_mode": NOTHING,
    "model.embedding_clip": (),  # of embedding_mode
    "model.vocab_lookup": ("true",),
    "model.tie_word_embeddings": NEVER,
    "*temp_curriculum_use_log": NEVER,
    "noise.sigma_min": (),  # of other schedules
    "noise.sigma_max": (),
    "trainer._target_": ("lightning.trainer",),
    "trainer.use_distributed_sampler": (),  # each device has its own rows either way
    "strategy._target_": (),
    "strategy.find_unused_parameters": (),
    "lr_scheduler._target_": (),
    "lr_scheduler.lr_lambda._target_": (),
    "lr_scheduler.t_in_epochs": NEVER,
    "lr_scheduler.warmup_prefix": ("true",),
    "callbacks.*._target_": (),
    "callbacks.*.save_last": (),  # last.ckpt is always kept: the same command goes on from it
    "callbacks.*.verbose": (),
    "callbacks.*.auto_insert_metric_name": (),
    "callbacks.checkpoint_every_n_steps.filename": (*NOTHING, "{epoch}-{step}"),
    "callbacks.grad_record.num_grads_log": (),  # all are logged
    "hydra.job.chdir": (),  # nothing depends on the working directory
}
for _name in ("importance_sampling", "change_of_variables"):
    DROPPED |= {key: NEVER for key in (_name, f"training.{_name}", f"algo.{_name}")}
DROPPED_VALUES = {("noise.eps", value) for value in ("0", "0.0")}  # ReDi's file; its code takes 1e-3

# What says something about the algorithm: key -> value in small letters -> algorithms that agree.
SUBS = ("mdlm", "imdm", "im-sdtt", "im-redi")
UNIFORM = ("duo_base", "duo", "distillation", "rectification")
_PARAMETERIZATION = {
    "subs": SUBS,
    "d3pm": ("d3pm",),
    "sedd": ("sedd",),
    "score": ("sedd",),
    "ar": ("ar",),
    "mean": (*UNIFORM, "d3pm"),
}
CLAIMS: dict[str, dict[str, tuple[str, ...]]] = {
    "algo.parameterization": _PARAMETERIZATION,
    "parameterization": {name: _PARAMETERIZATION[name] for name in ("subs", "d3pm", "sedd", "ar")},
    "subs_masking": {"true": SUBS, "false": ("d3pm", "sedd", "ar", *SUBS, *UNIFORM)},
    "causal_attention": {"true": ("ar",), "false": ("d3pm", "sedd", *SUBS, *UNIFORM)},
    "backbone": {"ar": ("ar",)},
    "model": {"small-ar": ("ar",), "tiny-ar": ("ar",)},
}
for _name in ("subs_masking", "causal_attention"):
    CLAIMS[f"algo.{_name}"] = CLAIMS[_name]

# MDLM's own names at the top level: who types one of them speaks of MDLM's program, whose default is subs.
_OF_MDLM = ("parameterization", "backbone", "diffusion", "subs_masking", "T", "time_conditioning")

# Keys of a neighbouring algorithm that the official commands type: no meaning, whatever the value.
_CURRICULUM = (
    "curriculum_mode",
    "gumbel_tau_log10_start",
    "gumbel_tau_log10_end",
    "curriculum_start",
    "curriculum_end",
)
_DISTILLATION = ("T", "update_teacher_every", "teacher_ema", "loss_type", "teacher_path")
_GROWTH = ("linear_growth_dt", "linear_growth_min", "linear_growth_max", "use_linear_schedule")
IDLE_IN = {
    "distillation": (*_CURRICULUM, "teacher_path"),
    "rectification": (
        *_CURRICULUM,
        *_DISTILLATION,
        *_GROWTH,
        "gamma_min",
        "gamma_max",
        "integral_cache_path",
    ),
}

_COMPILE = "DIT_USE_COMPILE"

# Translations that are not quite the same: said in one line.
REMARKS = {
    ("sampling.noise_removal", "true"): "sampling.noise_removal=True: here the last of sampling.steps takes "
    "the likeliest tokens (greedy); MDLM makes one more call for that, at t = 1e-5",
    (
        "sampling.noise_removal",
        "false",
    ): "sampling.noise_removal=False: here the last of sampling.steps leaves what is masked (none)",
    ("trainer.precision", "32"): "trainer.precision=32: all is float32; in the official programs the blocks "
    "compute in bf16 with it, as they do here with trainer.precision=bf16",
}


def is_dropped(key: str, typed: str, algo: str | None) -> bool:
    """Whether ``key=typed`` is an official setting without meaning here.

    Args:
        algo: the algorithm that was typed; None where that is not known.

    Raises:
        UserError: the key has no meaning here, but officially this value changes something.
    """
    value, (section, _, leaf) = typed.strip("'\"").lower(), key.partition(".")
    if (key, value) in DROPPED_VALUES or section == "algo" and leaf in IDLE_IN.get(algo or "", ()):
        return True
    lists = [values for name, values in DROPPED.items() if fnmatchcase(key, name)][:1]
    if key in CLAIMS and key != "model":  # a group here
        lists.append(tuple(CLAIMS[key]))
    if not lists:
        return False
    allowed = [value for values in lists for value in values]
    if allowed and value not in allowed:
        hint = f"leave it out, or use {' or '.join(allowed)}"
        raise UserError(key, typed, "not in this program, where it would change the results", hint)
    return True


def in_our_words(words: Sequence[str]) -> list[str]:
    """The words of a command line with the official names of keys and values replaced by those used here.

    What is implied comes first, so that what is typed wins.

    Raises:
        UserError: two words name different algorithms.
    """
    implied, typed = [], []
    if os.environ.get(_COMPILE, "").lower() in ("1", "true", "yes", "on"):
        implied.append("model.compile=True")
    for word in words:
        key, value = split(word)
        if key is None:
            typed.append(word)
            continue
        if key == "wandb.name" and value in NOTHING:
            continue
        translated = VALUES.get((ALIASES.get(key, key), value))
        if translated is not None:
            typed.append(translated[0])
            implied += translated[1:]
        elif key in ALIASES:
            typed.append(f"{ALIASES[key]}={word.partition('=')[2]}")
        else:
            typed.append(word)
    return [*_algorithm(words), *implied, *typed]


def split(word: str) -> tuple[str | None, str]:
    """Key and value of a word, signs and quotes apart, the value in small letters where it is a word of ours;
    None for the key of what is no assignment."""
    match = re.fullmatch(r"(?:\+\+|\+)?([^=\s~+][^=\s]*)=(.*)", word, re.DOTALL)
    return (None, word) if match is None else (match[1], match[2].strip().strip("'\"").lower())


def official_sampler(name: str) -> str:
    """The sampler that the official programs call ``name``; any other name stays."""
    (typed,) = VALUES.get(("sampling.predictor", name.lower()), (f"sampling.predictor={name}",))
    return typed.removeprefix("sampling.predictor=")


def typed_algorithm(words: Sequence[str]) -> str | None:
    """The value of the last ``algo=``; None when there is none."""
    return next((value for key, value in map(split, reversed(words)) if key == "algo"), None)


def remarks(words: Sequence[str]) -> list[str]:
    """What is to be said about translated words, one line each."""
    said = [REMARKS[pair] for pair in map(split, words) if pair in REMARKS]
    keys = {key for key, _ in map(split, words)}
    if _algorithm(words) == ["algo=mdlm"] and "parameterization" not in keys:
        name = next(key for key in _OF_MDLM if key in keys)
        said.append(
            f"algo=mdlm is taken, MDLM's default: {name} is a key of that program; type algo= to choose"
        )
    return said


def claims(words: Sequence[str]) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Key, value and the algorithms that agree with it, of each word that says something about them."""
    for key, value in map(split, words):
        if key in CLAIMS and value in CLAIMS[key]:
            yield key, value, CLAIMS[key][value]


def refuse_other_claims(found: Sequence[tuple[str, str, tuple[str, ...]]], algo: str) -> None:
    """Raise when a word speaks of another algorithm than ``algo``."""
    for key, value, agreeing in found:
        if algo not in agreeing:
            hint = f"use algo={' or algo='.join(agreeing)}, or leave {key} out"
            raise UserError(key, value, f"contradicts algo={algo}", hint)


def _algorithm(words: Sequence[str]) -> list[str]:
    """``algo=`` where no such word was typed, and MDLM's way of choosing was."""
    keys: Mapping[str | None, str] = dict(map(split, words))
    if "algo" in keys:
        return []
    for key, _, (first, *_) in claims(words):
        if key in ("parameterization", "backbone", "model"):
            # MDLM's networks see the time only when asked to.
            return [f"algo={first}", *(["algo.time_conditioning=False"] if first in ("sedd", "d3pm") else [])]
    own = "experiment" not in keys and any(key in keys for key in _OF_MDLM)
    return ["algo=mdlm"] if own else []
