"""mode=sample_eval: write text, from the fully masked state or into a prompt, and measure it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from data.decoding import decode, rule_of
from dataloader import batch_sizes
from metrics import mean_interval, sample_entropy
from tasks.call_schedule import schedule_report, set_schedule
from tasks.processes import ALONE, Processes, launch
from tasks.prompts import Starts, num_samples, prompted
from tasks.scoring import GenerativePerplexity, gen_ppl_words
from tasks.setup import build_evaluated, result_path
from tasks.trajectories import Trajectories
from trainer_base import TrainerBase
from utils import get_logger

log = get_logger("sample_eval")

More = Callable[[TrainerBase, DictConfig, int, Starts | None, Processes], dict[str, Any]]
T = TypeVar("T")
StartsOf = Callable[[TrainerBase, DictConfig, int], Starts | None]


def sample_eval(
    cfg: DictConfig,
    more: More | None = None,
    starts_of: StartsOf = prompted,
) -> dict[str, Any]:
    """Sample ``sampling.num_sample_batches`` batches for every number of steps in ``sampling.steps``.

    Returns (and writes to ``eval.generated_samples_path``) the object of one number of steps, or, for a
    list of several, ``{"runs": [...]}`` with one object each. Samples are in the file before they are judged
    and before the next ones are drawn: whatever happens then, mode=gen_ppl_eval can judge them. Several
    devices share the work; the first writes.

    Args:
        more: measures something else of the model at a number of steps; its keys are added to the object.
        starts_of: what samples start from, given the number of devices; None: the fully masked state.
    """
    path, processes = result_path(cfg), launch(cfg)
    # Before anything is sampled: a wrong name of the scorer must not cost the samples.
    measure = GenerativePerplexity(cfg) if cfg.eval.compute_generative_perplexity else None
    module = build_evaluated(cfg).to(processes.device)
    set_schedule(module, cfg)
    starts, steps = starts_of(module, cfg, processes.world_size), module.generator.step_counts()
    ways = Trajectories(module, cfg, path) if cfg.sampling.record_trajectories else None
    runs: list[dict[str, Any]] = []
    for num_steps in steps:
        runs.append(sample_run(module, cfg, num_steps, starts, ways, processes))
        if more is not None:
            runs[-1].update(more(module, cfg, num_steps, starts, processes))
        result = runs[0] if len(steps) == 1 else {"runs": runs}
        processes.write_json(path, result)
        if measure is not None:
            measure.judge(runs[-1], processes)
            processes.write_json(path, result)
            log.info("steps %d: %s", num_steps, gen_ppl_words(runs[-1]))
    log.info("samples -> %s", path)
    return result


def sample_run(
    module: TrainerBase,
    cfg: DictConfig,
    num_steps: int,
    starts: Starts | None = None,
    ways: Trajectories | None = None,
    processes: Processes = ALONE,
) -> dict[str, Any]:
    """Samples at one number of steps: texts, entropy, network calls, seconds; not judged yet.

    Starts take turns: each has ``starts.repeat`` samples in a row, and after the last one the first is next.
    Processes make the batches in turn, and all return all samples.
    """
    batch = batch_sizes(cfg, processes.world_size, evaluation=True)[0]
    num_batches = num_samples(cfg, processes.world_size) // batch * (starts.repeat if starts else 1)
    numbers, started = starts.numbers(0, num_batches * batch) if starts else [], time.perf_counter()

    def sample(k: int) -> tuple[Tensor, Tensor, int]:
        given = starts.of(numbers[k * batch : (k + 1) * batch]) if starts else {}
        if ways is not None:
            given["on_step"] = ways.watch(k * batch)
        made = module.generator.sample(batch, num_steps, first_row=k * batch, batch_size=batch, **given)
        return made.tokens.cpu(), made.nfe.cpu().double(), made.forward_passes

    with module.ema_weights():
        parts = _in_turn(sample, num_batches, processes, f"steps {num_steps}")
    seconds = time.perf_counter() - started
    tokens, nfe = (torch.cat([part[n] for part in parts]) for n in (0, 1))
    kept = starts.kept(tokens, numbers) if starts else tokens
    texts = decode(module.tokenizer, kept, cfg.eval.decoding)
    group = starts.repeat if starts else 1  # continuations of one prefix are alike
    run = {
        "steps": num_steps,
        "predictor": module.generator.sampler_class.name,
        "generative_ppl": None,
        **_entropy(torch.cat([sample_entropy(row[None]) for row in kept]), group, cfg.seed),
        "nfe": float(nfe.mean()),
        "nfe_interval": mean_interval(nfe, cfg.seed, group=group),
        "forward_passes": sum(passes for _, _, passes in parts),
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
        **schedule_report(module, num_steps),
        **(starts.report if starts else {}),
        "decoding": rule_of(module.tokenizer, cfg.eval.decoding),
        **({"trajectories": ways.finish(num_steps, list(map(len, kept)), processes)} if ways else {}),
        "generated_seqs": texts,
    }
    _tell(run, cfg.sampling.num_sample_log)
    return run


def _in_turn(make: Callable[[int], T], number: int, processes: Processes, what: str) -> list[T]:
    """``make`` of 0 .. number - 1, which processes take in turn; all return all of them."""
    mine = range(processes.rank, number, processes.world_size)
    hidden = None if processes.is_first else True  # None: shown on terminals
    made = {k: make(k) for k in tqdm(mine, desc=what, unit="batch", leave=False, disable=hidden)}
    everything = {k: part for parts in processes.gathered(made) for k, part in parts.items()}
    return [everything[k] for k in range(number)]


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
