"""What is wrong, or has no effect, in ``data``: the part of contradictions.py and oddities.py about it."""

from __future__ import annotations

from omegaconf import DictConfig

from config.keys import all_keys
from errors import UserError

_REFLOW = "reflow"


def refuse_data(cfg: DictConfig) -> None:
    """Raise for settings of ``data`` that cannot both hold."""
    data = cfg.data
    for role, section, other in (("train", "source", "valid_source"), ("valid", "valid_source", "source")):
        typed = {name: value for name, value in data[section].items() if value is not None}
        if data[role] == _REFLOW and typed:
            name, value = next(iter(typed.items()))
            what = "training" if role == "train" else "validation"
            hint = f"use data.{other} for the other text, or leave it out"
            raise UserError(f"data.{section}.{name}", value, f"{what} is on pairs, not on text", hint)
    if data.train_revision and data.source.revision and data.train_revision != data.source.revision:
        problem = f"data.source.revision={data.source.revision} says otherwise"
        raise UserError("data.train_revision", data.train_revision, problem, "give one of them")
    if data.streaming:
        _refuse_streaming(cfg)


def _refuse_streaming(cfg: DictConfig) -> None:
    data, limit = cfg.data, cfg.trainer.limit_train_batches
    if data.train == _REFLOW:
        raise UserError("data.streaming", True, "training is on pairs, not on text", "use False")
    if not data.wrap:
        raise UserError("data.wrap", False, "data.streaming=True packs documents", "use data.wrap=True")
    if isinstance(limit, float) and limit not in (0.0, 1.0):
        problem = "data.streaming=True has no length of which this could be a part"
        raise UserError("trainer.limit_train_batches", limit, problem, "give a number of batches")
    if cfg.mode == "generate_reflow_dataset" and cfg.reflow.perturbed_rect:
        problem = "mode=generate_reflow_dataset takes rows of the training text by their number"
        hint = "use data.streaming=False, or reflow.perturbed_rect=False for pairs from pure noise"
        raise UserError("data.streaming", True, problem, hint)


def idle_data(cfg: DictConfig) -> str | None:
    """A warning about settings of ``data`` that have no effect, or are not what one expects."""
    data = cfg.data
    if data.streaming and cfg.mode in ("ppl_eval", "cond_sample_eval_with_tc"):
        return f"data.streaming=True has no effect in mode={cfg.mode}: validation texts are prepared whole"
    if data.shuffle_buffer != all_keys()["data.shuffle_buffer"][0].default and not data.streaming:
        return "data.shuffle_buffer has no effect without data.streaming=True: all rows are shuffled"
    if cfg.mode == "zero_shot" and data.insert_valid_eos:
        return "published zero-shot perplexities are those of data.insert_valid_eos=False"
    return None
