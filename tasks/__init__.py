"""One file a mode: each takes the composed configuration, returns its result and writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig

from tasks.cond_sample_eval_with_tc import cond_sample_eval_with_tc
from tasks.export import export
from tasks.frontier import frontier
from tasks.gen_ppl_eval import gen_ppl_eval
from tasks.generate_reflow_dataset import generate_reflow_dataset
from tasks.judge import judge
from tasks.plan import plan
from tasks.ppl_eval import ppl_eval
from tasks.sample_eval import sample_eval
from tasks.sample_eval_with_tc import sample_eval_with_tc
from tasks.train import train
from tasks.zero_shot import zero_shot

MODES: dict[str, Callable[[DictConfig], dict[str, Any]]] = {
    "train": train,
    "ppl_eval": ppl_eval,
    "sample_eval": sample_eval,
    "sample_eval_with_tc": sample_eval_with_tc,
    "cond_sample_eval_with_tc": cond_sample_eval_with_tc,
    "generate_reflow_dataset": generate_reflow_dataset,
    "gen_ppl_eval": gen_ppl_eval,
    "zero_shot": zero_shot,
    "frontier": frontier,
    "judge": judge,
    "export": export,
    "plan": plan,
}
