"""Sections ``model``, ``lora`` and ``noise``: the network, its adapters, the schedule."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from config.algo import settings_of
from errors import ABSENT, UserError
from settings import MISSING, key

KEY = "model.path"
# Our key -> names that architectures have for it.
SIZES = {
    "hidden_size": ("hidden_size", "dim", "d_model"),
    "n_blocks": ("num_hidden_layers", "n_layers"),
    "n_heads": ("num_attention_heads", "n_heads"),
}
POSITIONS = ("max_position_embeddings", "max_sequence_length")
# Masked models whose code lies beside their weights.
REMOTE = ("llada", "Dream")


@dataclass
class Model:
    """The diffusion transformer."""

    name: str = key(MISSING, "the size's name")
    hidden_size: int = key(MISSING, "width", low=1, high=2**17, example=768)
    cond_dim: int = key(128, "width of the time embedding", low=1, high=2**17)
    length: int = key(1024, "tokens in a sequence", low=3, high=2**20)
    n_blocks: int = key(MISSING, "transformer blocks", low=1, high=2**12, example=12)
    n_heads: int = key(MISSING, "attention heads", low=1, high=2**12, example=12)
    dropout: float = key(0.1, "on the residual branches", low=0, below=1)
    noise_dim: int | None = key(
        None, "size of a mask's noise (imdm); null: the width", low=1, high=2**17, auto=True, example=768
    )
    softcap: float = key(-1.0, "soft cap on attention logits; 0 or less: off", example=50)
    qk_norm: bool = key(False, "LayerNorm on queries and keys")
    attention: str = key(
        "auto",
        "its kernels; auto: sdpa, with softcap on a GPU flash-attn or FlexAttention",
        choices=("auto", "sdpa", "flash", "flex", "plain"),
    )
    compile: bool = key(False, "torch.compile the blocks: slow to start, then faster, most of all on GPUs")


@dataclass
class PretrainedModel(Model):
    """A pretrained masked language model of Hugging Face; its sizes are read from its config.json."""

    path: str = key(
        MISSING,
        "folder of the model, or its name on the hub",
        path=True,
        example="answerdotai/ModernBERT-base",
    )
    trust_remote_code: bool = key(False, "run the code that lies beside the model (LLaDA, Dream)")
    hidden_size: int = key(0, "width; 0: that of the model", low=0, high=2**17)
    n_blocks: int = key(0, "transformer blocks; 0: those of the model", low=0, high=2**12)
    n_heads: int = key(0, "attention heads; 0: those of the model", low=0, high=2**12)
    mask_token_id: int | None = key(
        None,
        "id of the mask, where its tokenizer names none; null: by its config.json",
        low=0,
        example=126336,
    )
    base_dtype: str = key(
        "float32", "of frozen weights behind adapters (lora.rank)", choices=("float32", "bf16")
    )


@dataclass
class Lora:
    """Low-rank adapters of model=hf: the pretrained weights are frozen, and kept once."""

    rank: int = key(0, "rank of the adapters; 0: all weights are trained", low=0, high=2**14)
    alpha: float | None = key(
        None, "their update is scaled by alpha / rank; null: 2 * rank", above=0, example=32
    )
    targets: str = key("auto", "names of linear layers, like query,value; auto: all of the blocks")


@dataclass
class Noise:
    """The schedule alpha(t)."""

    name: str = key(MISSING, "the schedule")
    eps: float = key(1e-3, "alpha(1) is about eps", above=0, below=1)


def derive(cfg: DictConfig) -> None:
    """The sizes of a pretrained model; a mask's noise as wide as the network, unless typed."""
    _derive_pretrained(cfg)
    if cfg.model.noise_dim is None:
        cfg.model.noise_dim = cfg.model.hidden_size


def check(cfg: DictConfig) -> list[str]:
    """Raise for a network that cannot be; returns no warnings."""
    _validate_pretrained(cfg)
    _validate_attention(cfg)
    _validate_size(cfg)
    return []


def _validate_attention(cfg: DictConfig) -> None:
    model = cfg.model
    if model.hidden_size % model.n_heads:
        problem = f"does not divide model.hidden_size={model.hidden_size}"
        raise UserError("model.n_heads", model.n_heads, problem, "choose a divisor")
    if model.hidden_size // model.n_heads % 2:
        problem = f"makes heads of odd width {model.hidden_size // model.n_heads}, which cannot rotate"
        raise UserError(
            "model.n_heads", model.n_heads, problem, "choose another divisor of model.hidden_size"
        )
    if model.attention == "sdpa" and model.softcap > 0 and cfg.algo.name != "ar":
        problem = f"has no soft cap, which model.softcap={model.softcap:g} asks for"
        raise UserError("model.attention", "sdpa", problem, "use auto")
    if model.attention == "flash" and str(cfg.trainer.precision).startswith("32"):
        problem = f"computes in bf16, not in trainer.precision={cfg.trainer.precision}"
        raise UserError("model.attention", "flash", problem, "use auto, or trainer.precision=bf16")


def _validate_size(cfg: DictConfig) -> None:
    """Raise for a network that no machine holds, before an allocator says so."""
    model = cfg.model
    width, symbols = model.hidden_size, cfg.data.vocab_size or 0
    masks = cfg.algo.get("num_mask", 0) * model.noise_dim
    parameters = model.n_blocks * width * (12 * width + 6 * model.cond_dim) + 2 * symbols * width + masks
    if parameters > 10**12:
        problem = f"with model.n_blocks={model.n_blocks} a network of {parameters:.1e} parameters"
        raise UserError("model.hidden_size", width, problem, "make it smaller")


def is_pretrained(cfg: DictConfig) -> bool:
    """Whether the network is a pretrained model that has been named."""
    return "path" in cfg.model and not OmegaConf.is_missing(cfg.model, "path")


def _derive_pretrained(cfg: DictConfig) -> None:
    """Settle sizes and the mask of a pretrained model, in place.

    Raises:
        UserError: there is no such model, or it cannot be used.
    """
    if not is_pretrained(cfg):
        if "path" in list(cfg.model.keys()):  # ``in`` says no where a value is missing
            hint = "give a folder, or a name like answerdotai/ModernBERT-base"
            raise UserError(KEY, ABSENT, "has no value", hint)
        return
    path, model = str(cfg.model.path), cfg.model
    settings = read_settings(path)
    _validate_masked(settings, path)
    if settings.get("model_type") in REMOTE and not model.trust_remote_code:
        problem = f"is a {settings['model_type']} model, whose code lies beside its weights and is not run"
        raise UserError(KEY, path, problem, "read that code, then add model.trust_remote_code=True")
    for ours, names in SIZES.items():
        size = _first(settings, names)
        if size is None:
            raise UserError(KEY, path, f"its config.json has none of {', '.join(names)}", "use another model")
        if model[ours] not in (0, size):
            raise UserError(f"model.{ours}", model[ours], f"the model at {path} has {size}", "leave it out")
        model[ours] = size
    if model.mask_token_id is None:
        model.mask_token_id = settings.get("mask_token_id")
    _validate_length(settings, cfg)


def read_settings(path: str) -> dict[str, Any]:
    """The content of config.json of a folder or a hub model, with the defaults of its architecture.

    Raises:
        UserError: there is none.
    """
    folder = Path(path).expanduser()
    hint = "give a folder with config.json and weights, or a name on the hub"
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise UserError(KEY, path, "no model lies there: it has no config.json", hint)
        file = folder / "config.json"
    else:
        file = _fetch(path, hint)
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(KEY, path, "its config.json is no JSON", hint) from error
    if not isinstance(found, dict) or "model_type" not in found:
        raise UserError(KEY, path, "its config.json names no model_type", hint)
    if any(_first(found, names) is None for names in (*SIZES.values(), POSITIONS)):
        found = _defaults(found["model_type"]) | found
    return found


def _defaults(model_type: str) -> dict[str, Any]:
    """Files leave out what is as in the class of the settings."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return CONFIG_MAPPING[model_type]().to_dict() if model_type in CONFIG_MAPPING else {}


def _fetch(name: str, hint: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "config.json"))
    except Exception as error:  # the hub's client raises a dozen unrelated types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:100]
        raise UserError(
            KEY, name, f"no such folder, and the hub gives no such model ({reason})", hint
        ) from error


def _first(settings: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((settings[name] for name in names if settings.get(name) is not None), None)


def _validate_masked(settings: dict[str, Any], path: str) -> None:
    named = settings.get("architectures") or []
    causal = [name for name in named if name.endswith(("ForCausalLM", "LMHeadModel"))]
    if causal and settings["model_type"] not in REMOTE:
        problem = f"is no masked language model but a causal one ({causal[0]})"
        hint = "use one like ModernBERT, RoBERTa, EuroBERT, LLaDA or Dream; causal ones evaluate samples: "
        raise UserError(KEY, path, problem, f"{hint}eval.gen_ppl_eval_model_name_or_path")


def _validate_length(settings: dict[str, Any], cfg: DictConfig) -> None:
    most = _first(settings, POSITIONS)
    if most is not None and settings["model_type"] in ("roberta", "xlm-roberta", "camembert"):
        most -= settings.get("pad_token_id", 1) + 1  # its positions begin behind that of padding
    if most is not None and cfg.model.length > most:
        problem = f"the model at {cfg.model.path} has {most} positions"
        raise UserError("model.length", cfg.model.length, problem, f"use at most {most}")


def _validate_pretrained(cfg: DictConfig) -> None:
    """Raise for algorithms and settings that a pretrained masked model cannot follow."""
    if "path" not in cfg.model:
        if cfg.lora.rank:
            problem = "adapters are for pretrained models"
            raise UserError("lora.rank", cfg.lora.rank, problem, "use model=hf, or lora.rank=0")
        return
    algorithm = settings_of(cfg)
    if algorithm.causal or not algorithm.has_masks:
        problem = "does not write by unmasking, as pretrained masked models do"
        raise UserError("algo", cfg.algo.name, problem, "use mdlm, imdm, im-sdtt, im-redi, or another model")
    if algorithm.needs_coupled_pairs:
        problem = "its noise path does not reach pretrained models yet"
        raise UserError("algo", cfg.algo.name, problem, "use im-sdtt and im-redi")
    if cfg.algo.time_conditioning:
        problem = "a pretrained model does not see the noise level"
        raise UserError("algo.time_conditioning", True, problem, "use False")
    if cfg.optim.ln_tune != "none":
        raise UserError(
            "optim.ln_tune", cfg.optim.ln_tune, "names norms of model=small and others", "use none"
        )
    if cfg.model.base_dtype != "float32" and not cfg.lora.rank:
        problem = "weights that are trained are float32"
        raise UserError("model.base_dtype", cfg.model.base_dtype, problem, "add lora.rank=16, or use float32")
