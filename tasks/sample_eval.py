"""mode=sample_eval: write text, from the fully masked state or into a prompt, and measure it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from omegaconf import DictConfig
from tqdm import tqdm

from dataloader import batch_sizes
from metrics import mean_interval, sample_entropy
from tasks.prompts import Starts, prompted
from tasks.scoring import GenerativePerplexity, gen_ppl_words
from tasks.setup import build_evaluated, evaluation_device, result_path
from tasks.trajectories import Trajectories
from trainer_base import TrainerBase
from utils import get_logger, write_json

log = get_logger("sample_eval")

More = Callable[[TrainerBase, DictConfig, int, Starts | None], dict[str, Any]]


def sample_eval(
    cfg: DictConfig,
    more: More | None = None,
    starts_of: Callable[[TrainerBase, DictConfig], Starts | None] = prompted,
) -> dict[str, Any]:
    """Sample ``sampling.num_sample_batches`` batches for every number of steps in ``sampling.steps``.

    Returns (and writes to ``eval.generated_samples_path``) the object of one number of steps, or, for a
    list of several, ``{"runs": [...]}`` with one object each. Samples are in the file before they are judged
    and before the next ones are drawn: whatever happens then, mode=gen_ppl_eval can judge them.

    Args:
        more: measures something else of the model at a number of steps; its keys are added to the object.
        starts_of: what samples start from; None: the fully masked state.
    """
    path, device = result_path(cfg), evaluation_device(cfg)
    # Before anything is sampled: a wrong name of the scorer must not cost the samples.
    measure = GenerativePerplexity(cfg) if cfg.eval.compute_generative_perplexity else None
    module = build_evaluated(cfg).to(device)
    starts, steps = starts_of(module, cfg), module.step_counts()
    ways = Trajectories(module, cfg, path) if cfg.sampling.record_trajectories else None
    runs: list[dict[str, Any]] = []
    for num_steps in steps:
        runs.append(sample_run(module, cfg, num_steps, starts, ways))
        if more is not None:
            runs[-1].update(more(module, cfg, num_steps, starts))
        result = runs[0] if len(steps) == 1 else {"runs": runs}
        write_json(path, result)
        if measure is not None:
            measure.judge(runs[-1], device)
            write_json(path, result)
            log.info("steps %d: %s", num_steps, gen_ppl_words(runs[-1]))
    log.info("samples -> %s", path)
    return result


def sample_run(
    module: TrainerBase,
    cfg: DictConfig,
    num_steps: int,
    starts: Starts | None = None,
    ways: Trajectories | None = None,
) -> dict[str, Any]:
    """Samples at one number of steps: texts, entropy, network calls, seconds; not judged yet.

    Starts take turns: each has ``starts.repeat`` samples in a row, and after the last one the first is next.
    """
    batch = batch_sizes(cfg, world_size=1, evaluation=True)[0]
    num_batches = cfg.sampling.num_sample_batches * (starts.repeat if starts else 1)
    numbers = starts.numbers(0, num_batches * batch) if starts else []
    parts, started = [], time.perf_counter()
    with module.ema_weights():
        for k in tqdm(
            range(num_batches),
            desc=f"steps {num_steps}",
            unit="batch",
            leave=False,
            disable=None,
        ):
            given = starts.of(numbers[k * batch : (k + 1) * batch]) if starts else {}
            if ways is not None:
                given["on_step"] = ways.watch(k * batch)
            parts.append(module.sample(batch, num_steps, first_row=k * batch, batch_size=batch, **given))
    seconds = time.perf_counter() - started
    tokens = torch.cat([part.tokens for part in parts]).cpu()
    nfe = torch.cat([part.nfe for part in parts]).double()
    kept = starts.kept(tokens, numbers) if starts else tokens
    texts = module.tokenizer.batch_decode(kept)
    group = starts.repeat if starts else 1  # continuations of one prefix are alike
    run = {
        "steps": num_steps,
        "predictor": module.sampler_class.name,
        "generative_ppl": None,
        **_entropy(torch.cat([sample_entropy(row[None]) for row in kept]), group, cfg.seed),
        "nfe": float(nfe.mean()),
        "nfe_interval": mean_interval(nfe, cfg.seed, group=group),
        "forward_passes": sum(part.forward_passes for part in parts),
        "total_generation_times": seconds,
        "num_samples": len(texts),
        "length": tokens.shape[1],
        "seed": cfg.seed,
        "temperature": cfg.sampling.temperature,
        "draws": cfg.sampling.draws,
        "noise_removal": cfg.sampling.noise_removal,
        "precision": str(module.backbone.precision),
        "ema": module.uses_ema,
        "checkpoint": cfg.eval.checkpoint_path,
        **(starts.report if starts else {}),
        **({"trajectories": ways.finish(num_steps, map(len, kept))} if ways else {}),
        "generated_seqs": texts,
    }
    _tell(run, cfg.sampling.num_sample_log)
    return run


def _entropy(values: torch.Tensor, group: int, seed: int) -> dict[str, Any]:
    """The mean of the samples' entropies (N,) and how sure it is; ``group`` neighbours are alike."""
    independent = values.view(-1, group).mean(1)
    stderr = float(independent.std() / len(independent) ** 0.5) if len(independent) > 1 else None
    return {
        "entropy": float(values.mean()),
        "entropy_stderr": stderr,
        "entropy_interval": mean_interval(values, seed, group=group),
    }


def _tell(run: dict[str, Any], num_texts: int) -> None:
    """A line about a result, and its first texts."""
    log.info(
        "steps %d (%s): entropy %.3f nats, %.1f network calls per sequence, %.1f s for %d samples",
        run["steps"],
        run["predictor"],
        run["entropy"],
        run["nfe"],
        run["total_generation_times"],
        run["num_samples"],
    )
    for text in run["generated_seqs"][:num_texts]:
        log.info("  %s", text)
