"""Cost of IMDM on a CPU at a real vocabulary: training step, peak memory, sampling, full and lazy head.

    python bench/cpu.py [--vocab 30522] [--precision 32]
    python bench/cpu.py --distillation    # a step of IM-SDTT, in a process of its own for the peak memory
    python bench/cpu.py --duo             # steps of Duo: its curriculum, sparse and dense, and DCD, likewise

Setting: hidden 256, 4 blocks, 4 heads, batch 8 x length 128, dropout 0.1. Every row is a median; the ratios
are taken inside one process, in turn, so that a machine whose speed drifts does not favour one side.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from algo import ALGORITHMS
from config.cli import compose_config
from dataloader import get_tokenizer
from diffusion.parameterization import Prediction
from trainer_base import TrainerBase

BATCH, LENGTH = 8, 128


def build(algo: str, vocab: int, precision: str, *overrides: str) -> TrainerBase:
    """A model with random weights over ``vocab`` ids, the mask included."""
    cfg = compose_config(
        [f"algo={algo}", "data=synthetic-align", f"data.vocab_size={vocab - 1}", f"model.length={LENGTH}",
         "model.hidden_size=256", "model.n_blocks=4", "model.n_heads=4", "model.cond_dim=128",
         "model.noise_dim=256", f"loader.global_batch_size={BATCH}", f"trainer.precision={precision}",
         "training.ema=0", "wandb=null", *overrides]
    )  # fmt: skip
    return ALGORITHMS[algo](cfg, get_tokenizer(cfg))


def batch(vocab: int) -> dict[str, torch.Tensor]:
    """One micro-batch of random ids."""
    ids = torch.randint(vocab - 1, (BATCH, LENGTH), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids, dtype=torch.bool)
    return {"input_ids": ids, "attention_mask": mask, "row": torch.arange(BATCH)}


def training_step(module: TrainerBase, data: dict[str, torch.Tensor], step: int) -> None:
    """Forward and backward, as training does them."""
    module.train()
    module.loss(data, step=step, num_rows=BATCH, training=True).loss.backward()
    module.zero_grad()


def full_step(module: TrainerBase, data: dict[str, torch.Tensor], step: int) -> None:
    """The same loss by way of log-probabilities (B, L, V), which is what a head at all positions costs."""
    module.train()
    original = module.objective.denoise

    class Full:
        def __init__(self, prediction: Prediction) -> None:
            self.prediction, self.dtype = prediction, prediction.dtype

        def weighted_nll(self, rows: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor) -> tuple:
            log_x_theta = self.prediction.full().flatten(0, 1)
            nll = -log_x_theta[rows].gather(1, targets[:, None]).squeeze(1)
            return (weights * nll).sum(), nll.detach()

    module.objective.denoise = lambda *args: Full(original(*args))
    training_step(module, data, step)
    del module.objective.denoise


def distillation(vocab: int, precision: str) -> None:
    """A training step of IM-SDTT with two teacher steps, in its first round and in its last."""
    data, started = batch(vocab), 0.0
    for steps in (1024, 16):
        module = build("im-sdtt", vocab, precision, f"algo.orig_num_sampling_steps={steps}")
        started = started or peak_gib()
        seconds = median({"step": lambda k, module=module: training_step(module, data, k)}, 7)["step"]
        print(f"IM-SDTT step, forward + backward, teacher of {steps} steps: {seconds:.3f} s; "
              f"peak {peak_gib():.2f} GiB, {started:.2f} before")  # fmt: skip


def duo(vocab: int, precision: str) -> None:
    """Training steps of Duo: without a curriculum, with the largest entries of it, with all, and of DCD."""
    data, started = batch(vocab), 0.0
    cases = [("no curriculum", "duo_base", ()), ("distillation (DCD)", "distillation", ())]
    for k in (16, 64, 256, 0):
        cases.append((f"curriculum, {k or 'all'} entries", "duo", (f"algo.curriculum_top_k={k}",)))
    for name, algo, words in cases:
        module = build(algo, vocab, precision, *words)
        started = started or peak_gib()
        seconds = median({"step": lambda k, module=module: training_step(module, data, k)}, 5)["step"]
        print(f"Duo, {name}: {seconds:.3f} s; peak {peak_gib():.2f} GiB, {started:.2f} before")


class UncachedDecoder:
    """An autoregressive model's decoder without a cache: a call is a pass over all ids read so far."""

    def __init__(self, module: TrainerBase) -> None:
        self.module = module
        self.seen = module.objective.with_start(torch.empty(BATCH, 0, dtype=torch.int64))

    def read(self, ids: torch.Tensor) -> Prediction:
        self.seen = torch.cat((self.seen, ids), 1)
        return self.module.objective.prediction(
            self.module.backbone, self.module.backbone.body(self.seen, None)[:, -1:]
        )


def median(work: dict[str, Callable[[int], object]], repeats: int) -> dict[str, float]:
    """Median seconds of every piece of work, run in turn after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for k in range(repeats + 1):
        for name, call in work.items():
            started = time.perf_counter()
            call(k)
            if k:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_gib() -> float:
    """Peak resident memory of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocab", type=int, default=30522)
    parser.add_argument("--precision", default="32", choices=("32", "bf16"))
    parser.add_argument("--steps", type=int, nargs="*", default=[4, 32, 128, 1024])
    parser.add_argument("--distillation", action="store_true", help="measure IM-SDTT alone")
    parser.add_argument("--duo", action="store_true", help="measure Duo alone")
    args = parser.parse_args()
    if args.distillation:
        return distillation(args.vocab, args.precision)
    if args.duo:
        return duo(args.vocab, args.precision)
    data, module = batch(args.vocab), build("imdm", args.vocab, args.precision)
    started = peak_gib()
    lazy = median({"lazy": lambda k: training_step(module, data, k)}, 5)["lazy"]
    print(f"V = {args.vocab}, {args.precision}, {torch.get_num_threads()} threads, {BATCH} x {LENGTH} ids")
    print(
        f"training step, forward + backward:  {lazy:.3f} s; peak {peak_gib():.2f} GiB, {started:.2f} before"
    )
    both = median(
        {"lazy": lambda k: training_step(module, data, k), "full": lambda k: full_step(module, data, k)}, 5
    )
    print(f"the same through (B, L, V):         {both['full']:.3f} s, peak {peak_gib():.2f} GiB, "
          f"{both['full'] / both['lazy']:.1f} times the lazy one")  # fmt: skip
    for algo in ("imdm", "mdlm"):
        for predictor in ("ancestral", "ancestral_cache"):
            module = build(algo, args.vocab, args.precision, f"sampling.predictor={predictor}")
            for steps in args.steps:
                began = time.perf_counter()
                samples = module.generator.sample(BATCH, steps, batch_size=BATCH)
                print(f"{algo} {predictor} {steps} steps: {time.perf_counter() - began:.2f} s, "
                      f"{samples.nfe.double().mean():.1f} calls per sequence")  # fmt: skip
        module = build(algo, args.vocab, args.precision, "sampling.predictor=first_hitting")
        began = time.perf_counter()
        module.generator.sample(BATCH, 1, batch_size=BATCH)
        print(f"{algo} first_hitting: {time.perf_counter() - began:.2f} s, {LENGTH} calls per sequence")
    module = build("ar", args.vocab, args.precision)
    for name, decoder in (
        ("cached", module.denoiser.decoder),
        ("uncached", lambda _: UncachedDecoder(module)),
    ):
        module.denoiser.decoder = decoder
        began = time.perf_counter()
        module.generator.sample(BATCH, 1, batch_size=BATCH)
        print(f"ar {name}: {time.perf_counter() - began:.2f} s, {LENGTH} calls per sequence")


if __name__ == "__main__":
    main()
