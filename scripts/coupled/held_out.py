"""What students learned of pairs that they have not seen: cross-entropy and agreement, from pure masks.

    python scripts/coupled/held_out.py TEACHER.ckpt PAIRS_FOLDER STUDENT.ckpt...

The pairs are further rows of the folder's own command. The first line is a fresh student, which can only
repeat its own noise: what a student is better than that is what it knows of the noise of other masks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from config.cli import compose_config  # noqa: E402
from tasks.reflow_pairs import PairMaker  # noqa: E402
from tasks.setup import build_evaluated  # noqa: E402
from trainer_base import TrainerBase  # noqa: E402

FIRST, ROWS = 10_000_000, 128


def further_pairs(teacher: str, manifest: dict[str, Any]) -> dict[str, Tensor]:
    """Pairs of the same function with noise that no pair of the folder has."""
    words = ["experiment=pydoc_mdlm", "mode=generate_reflow_dataset", f"eval.checkpoint_path={teacher}"]
    words += ["sampling.predictor=coupled", f"sampling.steps={manifest['coupled']['calls']}"]
    words += [f"sampling.temperature={manifest['sampling']['temperature']}", "reflow.perturbed_rect=False"]
    cfg = compose_config([*words, f"seed={manifest['seed']}"], warn=False)
    maker = PairMaker(cfg, build_evaluated(cfg))
    rows = torch.arange(FIRST, FIRST + ROWS)
    with maker.module.ema_weights():
        made = {name: torch.from_numpy(value) for name, value in maker.make(rows).items()}
    x0 = made["x0"].long()
    batch = {"input_ids": x0, "xt": made["xt"].long(), "t": made["t"], "seed": made["seed"]}
    return {**batch, "row": torch.arange(ROWS), "attention_mask": torch.ones_like(x0, dtype=torch.bool)}


def student(path: str) -> TrainerBase:
    """A student; from the weights of an MDLM a fresh one."""
    words = ["experiment=pydoc_coupled", "data=pydoc", f"eval.checkpoint_path={path}", "algo.partial=0"]
    return build_evaluated(compose_config(words, warn=False))


@torch.no_grad()
def measure(module: TrainerBase, batch: dict[str, Tensor]) -> tuple[float, float]:
    """Cross-entropy in nats a token, and the share of tokens that one call writes as the teacher did."""
    with module.ema_weights():
        nll = module.loss(batch, step=0, num_rows=ROWS, training=True).token_nll.mean()
        seeds = batch["seed"].unsqueeze(-1).expand_as(batch["xt"])
        written = module.generator.reverse(batch["xt"], 1.0, seeds, batch["row"], 1).tokens
    masked = batch["xt"] == module.mask_id
    return float(nll), float((written == batch["input_ids"])[masked].double().mean())


def main(words: list[str]) -> int:
    if len(words) < 2 or words[0].startswith("-"):
        print((__doc__ or "").strip())
        return 0 if words == ["--help"] else 2
    teacher, folder, *students = words
    manifest = json.loads((Path(folder) / "manifest.json").read_text(encoding="utf-8"))
    batch = further_pairs(teacher, manifest)
    print("| student | cross-entropy (nats) | teacher's tokens written |\n|---|---|---|")
    for path in (teacher, *students):
        nll, share = measure(student(path), batch)
        name = "fresh" if path == teacher else Path(path).parent.parent.name
        print(f"| {name} | {nll:.3f} | {100 * share:.1f} % |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
