"""Generative perplexity as the configuration asks for it: which scorer, loaded once, and what is reported."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from data.hub import hub_reachable
from data.tokenizers import boundary_ids
from errors import UserError
from metrics import TextScores, score_texts
from models.checkpoint import read_checkpoint
from models.scorer import CausalLM, exact_float32, load_causal_lm
from models.written import SCORER_KEY as KEY
from models.written import WrittenTexts
from tasks.processes import Processes
from tasks.setup import build_from_checkpoint
from tasks.stored import stored_configuration
from tasks.weights import local_source, recorded_settings
from trainer_base import TrainerBase
from utils import get_logger, well_formed

HINT = "give a folder, an AR checkpoint of this program, or eval.compute_generative_perplexity=False"
GROUP_KEY = "num_cont_per_prefix"  # texts of a result that are neighbours and alike
log = get_logger("scoring")


class NotFromHub(UserError):
    """A scorer that the hub does not give, for want of a network or of the scorer."""


class CheckpointScorer:
    """An autoregressive checkpoint of this program as metrics.Scorer, with its averaged weights.

    Nothing is put around a text: the special tokens that it was written with stand in it.
    """

    def __init__(self, module: TrainerBase, name: str) -> None:
        self.module = module.eval().requires_grad_(False)
        self.name = name
        self.context: int | None = module.config.model.length
        self.eos_id: int | None = module.tokenizer.eos_token_id
        if module.objective.context.bos_id is not None and self.eos_id is not None:
            self.eos_id = boundary_ids(module.tokenizer, module.config.data.eos)[1]
        self._written = written_texts(module, name)

    @property
    def dtype(self) -> str:
        return str(self.module.backbone.precision).replace("32", "float32")

    def to(self, device: torch.device | str) -> None:
        self.module.to(device)

    def encode(self, texts: Sequence[str], max_tokens: int | None) -> list[list[int]]:
        return self._written.encode(texts, max_tokens)

    def token_nll(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        device = self.module.device
        with exact_float32(), self.module.ema_weights():
            return self.module.objective.token_log_probs(
                self.module.backbone, ids.to(device), attention_mask.to(device)
            )


def written_texts(module: TrainerBase, name: str) -> WrittenTexts:
    """Encodes texts of samples for ``module``."""
    return WrittenTexts(
        module.tokenizer,
        mask_id=None if module.objective.settings.family == "uniform" else module.mask_id,
        vocab_size=module.vocab_size,
        name=name,
    )


class GenerativePerplexity:
    """The measure with its scorer, which is loaded here, once, and waits on the CPU between its uses.

    Raises:
        NotFromHub: a hub name that cannot be loaded.
        ValueError: a file or folder that is none, or holds no causal model.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg
        self.scorer = load_scorer(cfg.eval.gen_ppl_eval_model_name_or_path, cfg.eval.gen_ppl_dtype)

    def scores(self, texts: Sequence[str], device: torch.device | str, length: int) -> TextScores:
        """Score samples of ``length`` tokens on ``device``, cut as ``eval.gen_ppl_cut`` says."""
        self.scorer.to(device)
        try:
            return score_texts(
                [well_formed(text) for text in texts],
                self.scorer,
                batch_size=self.cfg.eval.perplexity_batch_size,
                max_tokens=length if self.cfg.eval.gen_ppl_cut else None,
            )
        finally:
            self.scorer.to("cpu")

    def judge(self, run: dict[str, Any], processes: Processes) -> None:
        """Put into a result what is said of its ``generated_seqs``, samples of ``length`` tokens: the
        perplexity, how sure it is, and the protocol. The texts come last again. Processes share them."""
        length, texts = run["length"], run.pop("generated_seqs")
        try:
            group = run.get(GROUP_KEY) or 1
            group = group if len(texts) % group == 0 else 1
            mine = self.scores(texts[processes.rank :: processes.world_size], processes.device, length)
            scores = _in_turn(processes.gathered((mine.nll, mine.tokens)), len(texts))
            run.update(self._report(scores, length, group))
        finally:
            run["generated_seqs"] = texts

    def _report(self, scores: TextScores, length: int, group: int) -> dict[str, Any]:
        stderr, low, high = scores.bootstrap(self.cfg.seed, group=group) or (None, None, None)
        return {
            "generative_ppl": scores.perplexity,
            "generative_ppl_stderr": stderr,
            "generative_ppl_interval": None if low is None else [low, high],
            "gen_ppl_tokens": int(scores.tokens.sum()),
            "gen_ppl_scorer": self.scorer.name,
            "gen_ppl_dtype": self.scorer.dtype,
            "gen_ppl_cut": length if self.cfg.eval.gen_ppl_cut else None,
        }


def _in_turn(parts: Sequence[tuple[Tensor, Tensor]], number: int) -> TextScores:
    """The scores of ``number`` texts that were dealt out one by one."""
    sums = torch.zeros(2, number, dtype=torch.float64)
    for rank, part in enumerate(parts):
        sums[:, rank :: len(parts)] = torch.stack(part)
    return TextScores(*sums)


def gen_ppl_words(run: dict[str, Any]) -> str:
    """One result in words; the entropy always stands beside the perplexity, which low entropy flatters."""
    interval, entropy = run.get("generative_ppl_interval"), run.get("entropy")
    value = run["generative_ppl"]
    words = "no token to score" if value is None else f"generative perplexity {value:.2f}"
    if interval:
        words += f" ({interval[0]:.2f} to {interval[1]:.2f})"
    words += f" by {run['gen_ppl_scorer']}"
    return words if entropy is None else f"{words}, entropy {entropy:.3f} nats"


def load_scorer(name: str, dtype: str) -> CausalLM | CheckpointScorer:
    """The scorer that ``eval.gen_ppl_eval_model_name_or_path`` names, on the CPU.

    Args:
        name: an AR checkpoint of this program (a file, or owner/model/file.ckpt of the hub), a folder, or
            else a hub name.
        dtype: ``eval.gen_ppl_dtype``.

    Raises:
        NotFromHub, ValueError: see GenerativePerplexity.
    """
    local = Path(name).expanduser()
    if local.is_file() or local.suffix == ".ckpt":
        return _load_checkpoint(local_source(name, key=KEY), dtype)
    if not local.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
        raise UserError(KEY, name, "no such file or folder", HINT)
    offline = local.exists() or not hub_reachable()
    try:
        return load_causal_lm(str(local) if local.exists() else name, dtype=dtype, local_files_only=offline)
    except Exception as error:  # the libraries below raise a dozen unrelated types here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        if local.exists():
            raise UserError(KEY, name, f"no causal model can be read there ({reason})", HINT) from error
        problem = "the hub cannot be reached, and neither its cache nor a local folder has this model"
        if not offline:
            problem = f"it is no local folder, and the hub gives no such model ({reason})"
        raise NotFromHub(KEY, name, problem, HINT) from error


def _load_checkpoint(path: Path, dtype: str) -> CheckpointScorer:
    checkpoint = read_checkpoint(path, key=KEY)
    algo = recorded_settings(checkpoint).get("algo.name") if "config" in checkpoint else None
    if algo != "ar":
        problem = f"holds a model of algo={algo}" if algo else "is no checkpoint of this program"
        raise UserError(KEY, str(path), f"{problem}, which gives no likelihood of texts", HINT)
    precision = "bf16" if dtype == "bf16" else "32"
    settings = {"eval.disable_ema": False, "trainer.precision": precision}
    cfg = stored_configuration(checkpoint, str(path), settings, key=KEY)
    module = build_from_checkpoint(cfg, str(path), key=KEY, use_ema=cfg.training.ema > 0)
    return CheckpointScorer(module, str(path))
