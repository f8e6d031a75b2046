"""A pretrained model that was trained here, as a folder that transformers loads by itself."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor

from models.export import pretrained_mask_diffusion, sampling_mask_diffusion
from models.hf import NOISE_FILE, HfBackbone, auto_class
from models.lora import adapted_names, adapter_weights, merge
from trainer_base import TrainerBase

CODE = "mask_diffusion.py"
SETTINGS = "mask_diffusion.json"
ADAPTERS = "adapter"
_LINE = "# ---- the sampler\n"


def with_sampler(source: str) -> str:
    """The text of a file of models/export with the sampler that it imports inside."""
    lines = source.splitlines(keepends=True)
    at = next(n for n, line in enumerate(lines) if line.startswith("from models.export.sampling_mask"))
    sampler = Path(sampling_mask_diffusion.__file__).read_text(encoding="utf-8").split(_LINE, 1)[1]
    return "".join([*lines[:at], sampler.lstrip("\n"), "\n", *lines[at + 1 :]])


def write_pretrained(folder: Path, module: TrainerBase, cfg: DictConfig) -> None:
    """Weights with merged adapters, the noise of masks, the adapters by themselves, and the sampler.

    Args:
        folder: where nothing of that lies yet.
        module: with the weights that are exported.
    """
    network = module.backbone
    assert isinstance(network, HfBackbone)
    base = merge(_with_head(network))
    base.save_pretrained(folder)
    source = Path(cfg.model.path).expanduser()
    if source.is_dir() and getattr(base.config, "auto_map", None):
        for file in source.glob("*.py"):
            if file.name != CODE:
                shutil.copyfile(file, folder / file.name)
        content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        content["auto_map"] = base.config.auto_map
        (folder / "config.json").write_text(json.dumps(content, indent=2), encoding="utf-8")
    if noise := noise_weights(network):
        save_file(noise, folder / NOISE_FILE)
    code = Path(pretrained_mask_diffusion.__file__).read_text(encoding="utf-8")
    (folder / CODE).write_text(with_sampler(code), encoding="utf-8")
    settings = json.dumps(settings_json(module, cfg), indent=2)
    (folder / SETTINGS).write_text(settings, encoding="utf-8")
    if network.config.lora is not None:
        _write_adapters(folder / ADAPTERS, network, cfg)


def _with_head(network: HfBackbone) -> Any:
    """A copy of the pretrained model whose head computes logits again."""
    base = copy.deepcopy(network.base).float()
    del base.get_output_embeddings().forward
    return base


def noise_weights(network: HfBackbone) -> dict[str, Tensor]:
    """The weights of the noise of masks by name, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in network.vocab_embed.state_dict().items()}


def settings_json(module: TrainerBase, cfg: DictConfig) -> dict[str, Any]:
    """What mask_diffusion.py needs to know of the model."""
    network = module.backbone
    noise, layout = network.config.mask_noise, network.layout
    return {
        "algorithm": cfg.algo.name,
        "auto_class": auto_class(network.base.config),
        "hidden_size": network.config.hidden_size,
        "vocab_size": network.config.vocab_size,
        "mask_id": network.config.mask_id,
        "length": cfg.model.length,
        "mask_noise": None if noise is None else asdict(noise),
        "schedule": {"name": cfg.noise.name, "eps": cfg.noise.eps},
        "shifted": layout.shifted,
        "attention": layout.attention,
        "padded_positions": layout.padded_positions,
    }


def _write_adapters(folder: Path, network: HfBackbone, cfg: DictConfig) -> None:
    """The adapters alone, as ``peft`` reads them: PeftModel.from_pretrained(base, folder)."""
    folder.mkdir()
    lora = network.config.lora
    weights = {name: value.cpu().contiguous() for name, value in adapter_weights(network.base).items()}
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(cfg.model.path),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": adapted_names(network.base),
        "bias": "none",
        "lora_dropout": 0.0,
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


def pretrained_card(module: TrainerBase, cfg: DictConfig) -> str:
    """README.md: what the model is and how it is loaded, with this program's sampler and without."""
    network = module.backbone
    remote = ", trust_remote_code=True" if cfg.model.trust_remote_code else ""
    count = sum(p.numel() for p in network.parameters())
    adapters = ""
    if network.config.lora is not None:
        adapters = f"\n`{ADAPTERS}/` holds the adapters alone, as peft reads them, for the base model.\n"
    fill = ""
    plain = "" if network.config.mask_noise is None else " (its masks then carry no random state)"
    if auto_class(network.base.config) == "AutoModelForMaskedLM":
        mask = module.tokenizer.mask_token or "<mask>"
        fill = f"""
It is an ordinary masked language model as well{plain}:

```python
from transformers import pipeline

print(pipeline("fill-mask", model=".")("the {mask} is"))
```
"""
    return f"""---
library_name: transformers
pipeline_tag: fill-mask
base_model: {cfg.model.path}
---

# {cfg.name}

| | |
|---|---|
| algorithm | {cfg.algo.name} |
| base model | {cfg.model.path} ({network.base.config.model_type}) |
| data | {cfg.data.name} |
| length | {cfg.model.length} tokens |
| parameters | {count:,} |

```python
from mask_diffusion import load  # the file beside this one

model, tokenizer = load("."{remote})
ids = model.generate(num_samples=4, steps=8, temperature=1.0, seed=1)
print(tokenizer.batch_decode(ids, skip_special_tokens=True))
```
{fill}{adapters}
The licence is that of the base model.
"""
