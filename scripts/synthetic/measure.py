"""How far the symbols of a sequence agree: measure.py 4096 outputs/synthetic/imredi ...

Shapes: N samples, L positions, V symbols (the mask has no probability and is left out).
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from omegaconf import OmegaConf  # noqa: E402

from data.reflow import read_manifest  # noqa: E402
from diffusion.randomness import Stream, fold_in, row_keys  # noqa: E402
from models.checkpoint import read_checkpoint  # noqa: E402
from tasks.setup import build_evaluated, evaluation_device  # noqa: E402
from trainer_base import TrainerBase  # noqa: E402
from utils import write_json  # noqa: E402

_ELEMENTS = 2**23  # log-probabilities alive at once, 64 MiB in float64
Numbers = dict[str, Any]


def step_counts(length: int) -> list[int]:
    """1, 2, 4, ... up to ``length`` and ``length`` itself."""
    return sorted({*(2**k for k in range(length.bit_length()) if 2**k <= length), length})


def symbol_entropy(distribution: Tensor) -> float:
    """Entropy of a distribution (V,) relative to the uniform one, in [0, 1]."""
    distribution = distribution.double() / distribution.double().sum()
    return float(-torch.special.xlogy(distribution, distribution).sum() / math.log(len(distribution)))


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean of independent values (N,) and its standard error."""
    values = values.double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def of_samples(tokens: Tensor, num_symbols: int) -> Numbers:
    """Measures of samples (N, L), each with a standard error where it is a mean over them.

    agreement: share of sequences whose symbols are all the same; pairs: share of pairs of positions that
    agree; entropy: of the symbol over all positions, relative to uniform (plug-in: about (V - 1) / (2 N ln V)
    too low); agreeing_entropy: the same among the sequences that agree, None without any.
    """
    agrees = (tokens == tokens[:, :1]).all(-1)
    length = tokens.shape[1]
    same = (tokens.unsqueeze(1) == tokens.unsqueeze(2)).sum((1, 2))  # also with themselves
    pairs = (same - length) / (length * (length - 1))
    agreement, error = mean_and_error(agrees)
    together, pairs_error = mean_and_error(pairs)
    distribution = torch.bincount(tokens[agrees, 0], minlength=num_symbols)
    return {
        "agreement": agreement,
        "agreement_stderr": error,
        "pairs": together,
        "pairs_stderr": pairs_error,
        "entropy": symbol_entropy(torch.bincount(tokens.flatten(), minlength=num_symbols)),
        "agreeing_entropy": symbol_entropy(distribution) if agrees.any() else None,
    }


def of_one_step(batches: Iterator[Tensor]) -> Numbers:
    """Measures of the distribution of one step, from its own probabilities: nothing is drawn but the start
    noise.

    Given the start noise e the positions are independent, p(x) = E_e prod_l p_l(x_l | e). So the chance that
    all positions say v is a_v = E_e prod_l p_l(v | e), and of the data, which is v ... v with chance 1 / V,

        factorisation error = KL(data || p) = -log2 V - mean_v log2 a_v   bits.

    Without mask noise p is a product and the error at least (L - 1) log2 V, reached by uniform p_l, then with
    agreement (1 / V)^(L - 1) and pairs 1 / V. Exact but for the mean over e (a finite number of draws makes
    the error a little too large, as the mean of a logarithm).

    Args:
        batches: log-probabilities (n, L, V), each row with a start noise of its own.
    """
    each, pairs, left, log_all, marginal, rows = [], [], [], [], 0.0, 0
    for log_p in batches:
        p, length = log_p.exp(), log_p.shape[1]
        joint = log_p.sum(1)
        each.append(joint.exp().sum(-1))
        total = p.sum(1)
        pairs.append((total.square().sum(-1) - p.square().sum((1, 2))) / (length * (length - 1)))
        left.append(-torch.special.xlogy(p, p).sum((1, 2)) / (length * math.log(2)))
        log_all.append(joint.logsumexp(0))
        marginal = marginal + total.sum(0)
        rows += len(log_p)
    num_symbols = len(marginal)
    log_agree = torch.stack(log_all).logsumexp(0) - math.log(rows)
    agreement, error = mean_and_error(torch.cat(each))
    together, pairs_error = mean_and_error(torch.cat(pairs))
    return {
        "agreement": agreement,
        "agreement_stderr": error,
        "pairs": together,
        "pairs_stderr": pairs_error,
        "entropy": symbol_entropy(marginal),
        "agreeing_entropy": symbol_entropy((log_agree - log_agree.max()).exp()),
        "factorisation_error": -math.log2(num_symbols) - float(log_agree.mean()) / math.log(2),
        "bits_left_to_chance": float(torch.cat(left).mean()),
    }


def one_step_distributions(module: TrainerBase, num_samples: int) -> Iterator[Tensor]:
    """Log-probabilities (n, L, V) of the first step at fresh start noise, ``num_samples`` rows in all.

    The mask stands last in the vocabulary of this data.
    """
    length, num_symbols = module.config.model.length, module.mask_id
    size = max(1, _ELEMENTS // (length * num_symbols))
    t = torch.ones(1, dtype=torch.float64, device=module.device)
    for start in range(0, num_samples, size):
        rows = torch.arange(start, min(start + size, num_samples), device=module.device)
        keys = fold_in(row_keys(module.config.seed, Stream.SAMPLE, 0, rows), int(Stream.SAMPLE_START))
        sigma = module.objective.schedule.sigma(t).float().expand(len(rows))
        with torch.no_grad():
            prediction = module.denoiser.denoise(
                module.generator.prior(len(rows)), sigma, module.objective.draw_seeds(keys, length)
            )
            yield prediction.full()[..., :num_symbols].double().log_softmax(-1).cpu()


def load(checkpoint: Path) -> TrainerBase:
    """The model of a checkpoint by its own settings, with averaged weights where it has them."""
    cfg = OmegaConf.create(read_checkpoint(checkpoint, key="eval.checkpoint_path")["config"])
    cfg.mode = "sample_eval"
    cfg.training.finetune_path = ""
    cfg.eval.checkpoint_path = str(checkpoint)
    return build_evaluated(cfg).to(evaluation_device(cfg))


def curve(folder: Path, num_samples: int) -> list[Numbers]:
    """The one-step distribution at every regular checkpoint of a training, by optimizer step."""
    files = {int(path.stem.split("-")[1]): path for path in (folder / "checkpoints").glob("*-*.ckpt")}
    found = []
    for step, path in sorted(files.items()):
        module = load(path)
        with module.ema_weights():
            found.append({"step": step, **of_one_step(one_step_distributions(module, num_samples))})
    return found


def measure(folder: Path, num_samples: int) -> Numbers:
    """All measures of a run folder's model, at 1, 2, 4, ... L steps, drawn and with a greedy last step."""
    module = load(folder / "checkpoints" / "last.ckpt")
    cfg, noise = module.config, module.backbone.config.mask_noise
    result: Numbers = {
        "length": cfg.model.length,
        "num_symbols": module.mask_id,
        "num_samples": num_samples,
        "parameters": sum(p.numel() for p in module.parameters()),
        "width": cfg.model.hidden_size,
        "blocks": cfg.model.n_blocks,
        "updates": cfg.trainer.max_steps,
        "batch": cfg.loader.global_batch_size,
        "lr": cfg.optim.lr,
        "noise": None if noise is None else asdict(noise),
    }
    with module.ema_weights():
        result["one_step"] = of_one_step(one_step_distributions(module, num_samples))
        for removal in ("ancestral", "greedy"):
            cfg.sampling.noise_removal = removal
            result[removal] = {
                str(steps): of_samples(
                    module.generator.sample(num_samples, steps, batch_size=1024).tokens.cpu(), module.mask_id
                )
                for steps in step_counts(cfg.model.length)
            }
    if cfg.algo.name == "im-redi":
        manifest = read_manifest(Path(cfg.reflow.save_path))
        result["pairs"] = None if manifest is None else manifest["rows"]
        result["curve"] = curve(folder, num_samples)
    return result


def main(folder: Path, num_samples: int) -> None:
    """Write ``folder``/results/agreement.json; one newer than the weights, of as many samples, is kept."""
    path, weights = folder / "results" / "agreement.json", folder / "checkpoints" / "last.ckpt"
    fresh = path.exists() and path.stat().st_mtime_ns > weights.stat().st_mtime_ns
    if fresh and json.loads(path.read_text())["num_samples"] == num_samples:
        return
    result = measure(folder, num_samples)
    write_json(path, result)
    first = result["one_step"]
    print(f"{folder.name}: one step, agreement {first['agreement']:.4f}, entropy {first['entropy']:.3f}")


if __name__ == "__main__":
    for name in sys.argv[2:]:
        main(Path(name), int(sys.argv[1]))
