"""What follows from ``model=hf model.path=...``: sizes by its config.json, and whether it can be used.

Nothing here imports torch.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from config.algorithms import settings_of
from errors import ABSENT, UserError

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


def is_pretrained(cfg: DictConfig) -> bool:
    """Whether the network is a pretrained model that has been named."""
    return "path" in cfg.model and not OmegaConf.is_missing(cfg.model, "path")


def fill_pretrained(cfg: DictConfig) -> None:
    """Settle sizes and the mask of a pretrained model, in place.

    Raises:
        UserError: there is no such model, or it cannot be used.
    """
    if not is_pretrained(cfg):
        if "path" in cfg.model.keys():  # noqa: SIM118 (a key without a value is not "in" the section)
            raise UserError(
                KEY, ABSENT, "has no value", "give a folder, or a name like answerdotai/ModernBERT-base"
            )
        return
    path, model = str(cfg.model.path), cfg.model
    settings = read_settings(path)
    _refuse_causal(settings, path)
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
    _refuse_length(settings, cfg)


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


def _refuse_causal(settings: dict[str, Any], path: str) -> None:
    named = settings.get("architectures") or []
    causal = [name for name in named if name.endswith(("ForCausalLM", "LMHeadModel"))]
    if causal and settings["model_type"] not in REMOTE:
        problem = f"is no masked language model but a causal one ({causal[0]})"
        hint = "use one like ModernBERT, RoBERTa, EuroBERT, LLaDA or Dream; causal ones evaluate samples: "
        raise UserError(KEY, path, problem, f"{hint}eval.gen_ppl_eval_model_name_or_path")


def _refuse_length(settings: dict[str, Any], cfg: DictConfig) -> None:
    most = _first(settings, POSITIONS)
    if most is not None and settings["model_type"] in ("roberta", "xlm-roberta", "camembert"):
        most -= settings.get("pad_token_id", 1) + 1  # its positions begin behind that of padding
    if most is not None and cfg.model.length > most:
        problem = f"the model at {cfg.model.path} has {most} positions"
        raise UserError("model.length", cfg.model.length, problem, f"use at most {most}")


def refuse_pretrained(cfg: DictConfig) -> None:
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
