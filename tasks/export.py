"""mode=export: a checkpoint as a Hugging Face folder, which loads without this program."""

from __future__ import annotations

import ctypes
import errno
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
from transformers import PreTrainedTokenizerBase

from data.tokenizers import boundary_ids
from errors import UserError
from models.checkpoint import ROTARY
from models.export import modeling_mask_diffusion as template
from models.hf import HfBackbone
from models.hf_layouts import CONFIG_FILE, WEIGHTS
from tasks.export_pretrained import CODE as PRETRAINED_CODE
from tasks.export_pretrained import pretrained_card, with_sampler, write_pretrained
from tasks.export_tokenizer import exported_tokenizer
from tasks.setup import build_evaluated
from tasks.weights import read_source
from trainer_base import TrainerBase
from utils import TEMPORARY, get_logger, remove_leftovers, temporary_prefix, write_json

log = get_logger("export")

KEY = "export.path"
CODE = Path(template.__file__).name


def export(cfg: DictConfig) -> dict[str, Any]:
    """Write ``eval.checkpoint_path`` (its averaged weights unless ``eval.disable_ema``) to ``export.path``.

    The folder appears as a whole or not at all; an earlier export there is replaced, and there is the old one
    or the new one at any time. What killed exports left beside it is removed.

    Returns:
        The folder, the number of parameters, and whether the weights are averages.

    Raises:
        UserError: when something else lies at ``export.path``, or the checkpoint does not fit.
        OSError: with the name of the folder, when the disk is full.
    """
    target = Path(cfg.export.path).expanduser()
    _refuse_foreign_folder(target, written=None)
    if cfg.algo.name == "im-coupled":
        problem = "its draws need this program's noise, which the exported modelling file does not make"
        raise UserError(
            "algo", cfg.algo.name, problem, "export its teacher, or sample with main.py and api.py"
        )
    module = build_evaluated(cfg)
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=temporary_prefix(target), suffix=TEMPORARY))
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
    found = {path.name for path in target.iterdir()}
    if not {CONFIG_FILE, WEIGHTS} <= found or not {CODE, PRETRAINED_CODE} & found:
        raise UserError(KEY, str(target), "a folder with other things than an export", hint)
    for path in sorted(target.iterdir()):
        if written is not None and path.name not in written:
            raise UserError(KEY, str(target), f"holds {path.name}, which no export writes", hint)


def _move(temporary: Path, target: Path) -> None:
    """Put the folder ``temporary`` in the place of ``target``; ``temporary`` then holds what was there."""
    umask = os.umask(0)
    os.umask(umask)
    temporary.chmod(0o777 & ~umask)  # mkdtemp makes private folders
    try:
        os.replace(temporary, target)  # nothing is there, or an empty folder
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if _exchange(temporary, target):
        return
    # One file at a time: the folder loads at any moment, but for that between the last two if the networks
    # are of different shapes.
    late = (CONFIG_FILE, WEIGHTS)
    early = [path.name for path in temporary.iterdir() if path.name not in late]
    for name in (*early, *late):
        os.replace(temporary / name, target / name)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system (other than Linux) or the file system cannot."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(one), here, os.fsencode(other), swap) == 0


def _write(folder: Path, module: TrainerBase, cfg: DictConfig) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tokenizer = exported_tokenizer(module)
    if isinstance(module.backbone, HfBackbone):
        with module.ema_weights():
            write_pretrained(folder, module, cfg)
        _write_tokenizer(folder, tokenizer, cfg)
        (folder / "README.md").write_text(pretrained_card(module, cfg), encoding="utf-8")
        return
    with module.ema_weights():
        weights = exported_weights(module)
    config, card = config_json(module, cfg, tokenizer), model_card(module, cfg)
    try:
        save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})
        write_json(folder / CONFIG_FILE, config)
        source = Path(template.__file__).read_text(encoding="utf-8")
        (folder / CODE).write_text(with_sampler(source), encoding="utf-8")
        _write_tokenizer(folder, tokenizer, cfg)
        (folder / "README.md").write_text(card, encoding="utf-8")
        for path in folder.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    except SafetensorError as error:
        raise _unwritten(cfg, "the weights", error) from error
    except OSError as error:
        raise OSError(error.errno, error.strerror, cfg.export.path) from error


def _write_tokenizer(folder: Path, tokenizer: PreTrainedTokenizerBase, cfg: DictConfig) -> None:
    try:
        tokenizer.save_pretrained(folder)
    except Exception as error:
        if type(error) is not Exception:  # which is what the tokenizers library raises when it cannot write
            raise
        raise _unwritten(cfg, "the tokenizer", error) from error


def _unwritten(cfg: DictConfig, what: str, error: Exception) -> UserError:
    hint = "make room, or choose another place"
    return UserError(KEY, cfg.export.path, f"{what} cannot be written ({error})", hint)


def exported_weights(module: TrainerBase) -> dict[str, Tensor]:
    """The present weights of the network by name, float32 on the CPU; what is computed is left out."""
    return {
        f"backbone.{name}": value.detach().to("cpu", torch.float32, copy=True).contiguous()
        for name, value in module.backbone.state_dict().items()
        if not name.endswith(ROTARY)
    }


def config_json(module: TrainerBase, cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """The content of config.json: hyper-parameters, which class of the file beside it is which, the ids that
    training put around texts; ``tokenizer`` is the one that lies beside it."""
    network = module.backbone.config
    names = ("vocab_size", "hidden_size", "cond_dim", "n_blocks", "n_heads", "length", "softcap", "qk_norm")
    head = "MaskDiffusionForCausalLM" if network.causal else "MaskDiffusionForMaskedLM"
    auto = "AutoModelForCausalLM" if network.causal else "AutoModelForMaskedLM"
    module_name = CODE.removesuffix(".py")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if bos is not None and eos is not None:
        bos, eos = boundary_ids(tokenizer, cfg.data.eos)
    elif network.causal:
        bos = network.mask_id  # it stands in front of texts without bos
    sizes = {name: getattr(network, name) for name in names}
    if network.causal:
        sizes["softcap"] = -1.0  # causal blocks cap nothing, whatever the configuration says
    config = template.MaskDiffusionConfig(
        **sizes,
        mask_token_id=network.mask_id,
        causal=network.causal,
        time_conditioning=cfg.algo.time_conditioning,
        mask_noise=None if network.mask_noise is None else asdict(network.mask_noise),
        architectures=[head],
        dtype="float32",
        auto_map={"AutoConfig": f"{module_name}.MaskDiffusionConfig", auto: f"{module_name}.{head}"},
        algorithm=cfg.algo.name,
        schedule={"name": cfg.noise.name, "eps": cfg.noise.eps},
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=tokenizer.pad_token_id,
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
    bound = "" if module.objective.settings.exact_likelihood else " (upper bound)"
    names = {"val/ppl": f"validation perplexity{bound}", "val/bpd": f"validation bits per token{bound}"}
    return {words: f"{measured[n]:.4g}" for n, words in names.items() if measured.get(n) is not None}


def _example(module: TrainerBase) -> str:
    if module.backbone.config.causal:
        first = (
            "tokenizer.bos_token_id"
            if module.tokenizer.bos_token_id is not None
            else "model.config.mask_token_id"
        )
        return (
            f"ids = torch.tensor([[{first}]])  # every text begins so\n"
            "log_probs = model(ids).logits.log_softmax(-1)  # of the token behind each\n"
            "text = tokenizer.decode(model.generate(ids, do_sample=True, max_length=model.config.length)[0])"
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
            "Padding (`attention_mask` 0) may stand on either side, and the mask has no probability. "
            "`generate()` computes the whole text for every token."
        )
    elif network.mask_id is not None:
        said.append(
            "The mask is no token: leave its column of the logits out of a softmax. "
            "Padding (`attention_mask` 0) is not seen."
        )
    if network.mask_noise is not None:
        said.append(
            "Every mask carries a random state: `noise_seeds` (int64, the shape of the ids) says which, and "
            "without it fresh states are drawn at every call (`generator=` or PyTorch's own generator)."
        )
    if module.config.algo.time_conditioning:
        said.append("The network sees the noise level: give `sigma` (B,) = -log alpha.")
    said.append("The program that trained it loads this folder as `eval.checkpoint_path`.")
    return "\n".join(said)
