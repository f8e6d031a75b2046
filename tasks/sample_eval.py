"""mode=sample_eval: write text from the fully masked state and measure it."""

from __future__ import annotations

import time
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from dataloader import batch_sizes
from metrics import sample_entropy
from tasks.setup import build_evaluated, result_path
from trainer_base import TrainerBase
from utils import get_logger, write_json

log = get_logger("sample_eval")


def sample_eval(cfg: DictConfig) -> dict[str, Any]:
    """Sample ``sampling.num_sample_batches`` batches for every number of steps in ``sampling.steps``.

    Returns (and writes to ``eval.generated_samples_path``) the object of one number of steps, or, for a
    list of several, ``{"runs": [...]}`` with one object each.
    """
    path = result_path(cfg)
    device = "cuda" if torch.cuda.is_available() and cfg.trainer.accelerator != "cpu" else "cpu"
    module = build_evaluated(cfg).to(device)
    runs = [sample_run(module, cfg, num_steps) for num_steps in module.step_counts()]
    result = runs[0] if len(runs) == 1 else {"runs": runs}
    write_json(path, result)
    log.info("samples -> %s", path)
    return result


def sample_run(module: TrainerBase, cfg: DictConfig, num_steps: int) -> dict[str, Any]:
    """Samples at one number of steps: texts, entropy, network calls, seconds."""
    batch = batch_sizes(cfg, world_size=1, evaluation=True)[0]
    parts, started = [], time.perf_counter()
    with module.ema_weights():
        for k in tqdm(
            range(cfg.sampling.num_sample_batches),
            desc=f"steps {num_steps}",
            unit="batch",
            leave=False,
            disable=None,
        ):
            parts.append(module.sample(batch, num_steps, first_row=k * batch, batch_size=batch))
    seconds = time.perf_counter() - started
    tokens = torch.cat([part.tokens for part in parts]).cpu()
    nfe = torch.cat([part.nfe for part in parts]).double()
    texts = module.tokenizer.batch_decode(tokens)
    entropies = sample_entropy(tokens)
    run = {
        "steps": num_steps,
        "predictor": module.sampler_class.name,
        "entropy": float(entropies.mean()),
        "entropy_stderr": float(entropies.std() / len(entropies) ** 0.5) if len(entropies) > 1 else None,
        "nfe": float(nfe.mean()),
        "forward_passes": sum(part.forward_passes for part in parts),
        "total_generation_times": seconds,
        "num_samples": len(texts),
        "seed": cfg.seed,
        "temperature": cfg.sampling.temperature,
        "noise_removal": cfg.sampling.noise_removal,
        "precision": str(module.backbone.precision),
        "ema": module.uses_ema,
        "checkpoint": cfg.eval.checkpoint_path,
        "generated_seqs": texts,
    }
    log.info(
        "steps %d (%s): entropy %.3f nats, %.1f network calls per sequence, %.1f s for %d samples",
        num_steps,
        run["predictor"],
        run["entropy"],
        run["nfe"],
        seconds,
        len(texts),
    )
    for text in texts[: cfg.sampling.num_sample_log]:
        log.info("  %s", text)
    return run
