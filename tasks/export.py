"""mode=export: a checkpoint as a Hugging Face folder, which loads without this program."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from errors import UserError
from models.checkpoint import ROTARY
from models.export import modeling_mask_diffusion as template
from models.hf_layouts import CONFIG_FILE, WEIGHTS
from tasks.setup import build_evaluated
from tasks.weights import read_source
from trainer_base import TrainerBase
from utils import get_logger, write_json

log = get_logger("export")

KEY = "export.path"
CODE = Path(template.__file__).name


def export(cfg: DictConfig) -> dict[str, Any]:
    """Write ``eval.checkpoint_path`` (its averaged weights unless ``eval.disable_ema``) to ``export.path``.

    The folder appears as a whole or not at all; an earlier export there is replaced.

    Returns:
        The folder, the number of parameters, and whether the weights are averages.

    Raises:
        ValueError: when something else lies at ``export.path``, or the checkpoint does not fit.
    """
    target = Path(cfg.export.path).expanduser()
    _refuse_foreign_folder(target, written=None)
    module = build_evaluated(cfg)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        _write(temporary, module, cfg)
        _refuse_foreign_folder(target, {path.name for path in temporary.iterdir()})
        _move(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    result = {
        "path": str(target),
        "parameters": sum(p.numel() for p in module.backbone.parameters()),
        "ema": module.uses_ema,
        "checkpoint": cfg.eval.checkpoint_path,
    }
    log.info("%s parameters -> %s", f"{result['parameters']:,}", target)
    return result


def _refuse_foreign_folder(target: Path, written: set[str] | None) -> None:
    """An export may replace an earlier one, whose files are the same (``written``), and nothing else."""
    if target.is_dir() and not any(target.iterdir()):
        return
    hint = "give another export.path, or remove what is there"
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise UserError(KEY, str(target), "is no folder", hint)
    if not target.exists():
        return
    if not {CODE, CONFIG_FILE, WEIGHTS} <= {path.name for path in target.iterdir()}:
        raise UserError(KEY, str(target), "a folder with other things than an export", hint)
    for path in sorted(target.iterdir()):
        if written is not None and path.name not in written:
            raise UserError(KEY, str(target), f"holds {path.name}, which no export writes", hint)


def _move(temporary: Path, target: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o777 & ~umask)  # mkdtemp makes private folders
    if not target.exists() or not any(target.iterdir()):
        os.replace(temporary, target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    os.replace(target, old)
    os.replace(temporary, target)
    shutil.rmtree(old)


def _write(folder: Path, module: TrainerBase, cfg: DictConfig) -> None:
    from safetensors.torch import save_file

    with module.ema_weights():
        weights = exported_weights(module)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
    write_json(folder / CONFIG_FILE, config_json(module, cfg))
    shutil.copyfile(template.__file__, folder / CODE)
    module.tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(model_card(module, cfg), encoding="utf-8")


def exported_weights(module: TrainerBase) -> dict[str, Tensor]:
    """The present weights of the network by name, float32 on the CPU; what is computed is left out."""
    return {
        f"backbone.{name}": value.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, value in module.backbone.state_dict().items()
        if not name.endswith(ROTARY)
    }


def config_json(module: TrainerBase, cfg: DictConfig) -> dict[str, Any]:
    """The content of config.json: hyper-parameters, and which class of the file beside it is which."""
    network = module.backbone.config
    names = ("vocab_size", "hidden_size", "cond_dim", "n_blocks", "n_heads", "length", "softcap", "qk_norm")
    head = "MaskDiffusionForCausalLM" if network.causal else "MaskDiffusionForMaskedLM"
    auto = "AutoModelForCausalLM" if network.causal else "AutoModelForMaskedLM"
    module_name = CODE.removesuffix(".py")
    config = template.MaskDiffusionConfig(
        **{name: getattr(network, name) for name in names},
        mask_token_id=network.mask_id,
        causal=network.causal,
        time_conditioning=cfg.algo.time_conditioning,
        mask_noise=None if network.mask_noise is None else asdict(network.mask_noise),
        architectures=[head],
        dtype="float32",
        auto_map={"AutoConfig": f"{module_name}.MaskDiffusionConfig", auto: f"{module_name}.{head}"},
        algorithm=cfg.algo.name,
        bos_token_id=module.tokenizer.bos_token_id,
        eos_token_id=module.tokenizer.eos_token_id,
        pad_token_id=module.tokenizer.pad_token_id,
    )
    return json.loads(config.to_json_string())


def model_card(module: TrainerBase, cfg: DictConfig) -> str:
    """README.md: what the model is, what is known of its quality, how it is loaded."""
    network, checkpoint = (
        module.backbone.config,
        read_source(cfg.eval.checkpoint_path, key="eval.checkpoint_path"),
    )
    auto = "AutoModelForCausalLM" if network.causal else "AutoModelForMaskedLM"
    count = sum(p.numel() for p in module.backbone.parameters())
    facts = {
        "algorithm": cfg.algo.name,
        "data": cfg.data.name,
        "length": f"{network.length} tokens",
        "parameters": f"{count:,}",
        "network": f"{network.n_blocks} blocks, width {network.hidden_size}, {network.n_heads} heads",
        "vocabulary": f"{network.vocab_size}"
        + ("" if network.mask_id is None else f", mask {network.mask_id}"),
        "weights": "averaged over training (EMA)" if module.uses_ema else "as they are in the checkpoint",
        "training steps": checkpoint.get("global_step"),
        **_known_numbers(module, cfg),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items() if value is not None)
    return f"""---
license: apache-2.0
library_name: transformers
pipeline_tag: {"text-generation" if network.causal else "fill-mask"}
---

# {cfg.name}

| | |
|---|---|
{table}

```python
import torch
from transformers import {auto}, AutoTokenizer

folder = "."  # or the name of this repository
model = {auto}.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
{_example(module)}
```

{_remarks(module)}

Licence: Apache 2.0.
"""


def _known_numbers(module: TrainerBase, cfg: DictConfig) -> dict[str, str]:
    """What the run itself measured of its last checkpoint at its end, where these are the same weights."""
    path = Path(cfg.eval.checkpoint_path)
    result = path.parent.parent / "result.json"
    if path.name != "last.ckpt" or not result.is_file() or not module.uses_ema:
        return {}
    measured = json.loads(result.read_text(encoding="utf-8"))
    bound = "" if module.exact_likelihood else " (upper bound)"
    names = {"val/ppl": f"validation perplexity{bound}", "val/bpd": f"validation bits per token{bound}"}
    return {words: f"{measured[name]:.4g}" for name, words in names.items() if name in measured}


def _example(module: TrainerBase) -> str:
    if module.backbone.config.causal:
        first = (
            "tokenizer.bos_token_id"
            if module.tokenizer.bos_token_id is not None
            else "model.config.mask_token_id"
        )
        return (
            f"ids = torch.tensor([[{first}]])  # every text begins so\n"
            "log_probs = model(ids).logits.log_softmax(-1)  # of the token behind each"
        )
    if module.backbone.config.mask_id is None:
        ids = "ids = torch.randint(model.config.vocab_size, (1, model.config.length))"
    else:
        ids = "ids = torch.full((1, model.config.length), model.config.mask_token_id)  # all masked"
    return f"{ids}\nlogits = model(ids).logits"


def _remarks(module: TrainerBase) -> str:
    network, said = module.backbone.config, []
    if network.causal:
        said.append(
            "Padding stands on the right; the attention mask is ignored, and the mask has no probability."
        )
    elif network.mask_id is not None:
        said.append("The mask is no token: leave its column of the logits out of a softmax.")
    if network.mask_noise is not None:
        said.append(
            "Every mask carries a random state: `noise_seeds` (int64, the shape of the ids) says which, and "
            "without it fresh states are drawn at every call (`generator=` or PyTorch's own generator)."
        )
    if module.config.algo.time_conditioning:
        said.append("The network sees the noise level: give `sigma` (B,) = -log alpha.")
    said.append("The program that trained it loads this folder as `eval.checkpoint_path`.")
    return "\n".join(said)
