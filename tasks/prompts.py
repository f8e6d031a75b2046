"""What samples start from: prompts with blanks, or the beginnings of validation texts.

Shapes: N starts, n samples, L positions.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.batching import official_permutation, permutation
from data.dataset import TokenDataset
from data.decoding import decode
from data.tokenizers import boundary_ids
from dataloader import batch_sizes
from errors import UserError
from models.written import unknown_id
from trainer_base import TrainerBase
from utils import well_formed

END = "<end>"
REFERENCE_SEED = 42  # of the order in which validation texts are taken, as prefixes and as human references

_BLANK = r"(?<!\\)_"
_KEYS = ("sampling.prompt", "sampling.prompt_file")


@dataclass(frozen=True)
class Starts:
    """Start states and what becomes of the samples.

    Attributes:
        given: (N, L) ids, masks where the model writes.
        ends: (N,) how many tokens of a sample are kept; 0: all, however many are written.
        repeat: samples of each start in a row.
        start_seed: all samples share the start noise of this seed; None: each has its own.
        report: keys for the result.
    """

    given: Tensor
    ends: tuple[int, ...]
    repeat: int = 1
    start_seed: int | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def numbers(self, first_row: int, num_samples: int, repeat: int | None = None) -> list[int]:
        """Which start each of ``num_samples`` samples has, from row ``first_row`` on; they come in turn."""
        rows = range(first_row, first_row + num_samples)
        return [row // (repeat or self.repeat) % len(self.given) for row in rows]

    def of(self, numbers: list[int]) -> dict[str, Any]:
        """The arguments of ``TrainerBase.sample`` for the starts ``numbers``."""
        return {"given": self.given[numbers], "start_seed": self.start_seed}

    def kept(self, tokens: Tensor, numbers: list[int]) -> list[Tensor]:
        """What is kept of samples (n, L) of the starts ``numbers``: one row of ids each."""
        ends = [self.ends[number] or tokens.shape[1] for number in numbers]
        return [row[:end] for row, end in zip(tokens, ends, strict=True)]


# Prompts ------------------------------------------------------------------------------------------


def num_samples(cfg: DictConfig, world_size: int) -> int:
    """How many samples ``sampling.num_sample_batches`` batches per device are, over all of them."""
    batch = batch_sizes(cfg, world_size, evaluation=True)[0]
    return cfg.sampling.num_sample_batches * batch * world_size


def prompted(module: TrainerBase, cfg: DictConfig, world_size: int = 1) -> Starts | None:
    """The starts that ``sampling.prompt`` or ``sampling.prompt_file`` asks for; None without a prompt."""
    name = _KEYS[cfg.sampling.prompt is None]
    if cfg.sampling.prompt is not None:
        prompts = [cfg.sampling.prompt]
    elif cfg.sampling.prompt_file is not None:
        prompts = read_prompts(cfg.sampling.prompt_file)
    else:
        return None
    number = num_samples(cfg, world_size)
    if len(prompts) > number:
        problem = f"its {len(prompts)} prompts are more than the {number} samples"
        raise UserError(name, cfg.sampling.prompt_file, problem, "raise sampling.num_sample_batches")
    return starts_of_prompts(module, prompts, key=name)


def read_prompts(name: str) -> list[str]:
    """The prompts of a file: one a line, or in a .jsonl file one object a line with "prompt"; empty lines
    are left out. Lines end with a line feed and with nothing else, as in data files.

    Raises:
        ValueError: no such file, no text, no prompt in it, or a line without one.
    """
    key, path = _KEYS[1], Path(name).expanduser()
    try:
        lines = path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except FileNotFoundError as error:
        hint = "give a text file, one prompt a line, or a .jsonl file with prompt"
        raise UserError(key, name, "no such file", hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(key, name, f"cannot be read as text ({error})", "give a text file") from error
    prompts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            prompts.append(_json_prompt(line, name, number) if path.suffix == ".jsonl" else line)
    if not prompts:
        raise UserError(key, name, "holds no prompt", "write one prompt a line")
    return prompts


def _json_prompt(line: str, name: str, number: int) -> str:
    try:
        content = json.loads(line)
        prompt = content.get("prompt") if isinstance(content, dict) else None
    except ValueError:
        prompt = None
    if not isinstance(prompt, str):
        problem = f"line {number} is no JSON object with a text called prompt"
        raise UserError(_KEYS[1], name, problem, 'write {"prompt": "..."}')
    return prompt


def starts_of_prompts(module: TrainerBase, prompts: list[str], *, key: str) -> Starts:
    r"""Start states in which the model's rows begin with ``prompts``, and their blanks are masks.

    Every underscore of a prompt is one token that the model writes: "the ____ is" has a blank of four tokens,
    and ``\_`` is an underscore itself. The name of the tokenizer's mask token is a blank of one token; the
    names of other special tokens are text, as in training data. A prompt stands at the beginning of a row,
    behind bos where the tokenizer has one. The model also writes all that follows, up to ``model.length``.
    Where a prompt ends with ``<end>`` its text ends there: eos follows, and what the model writes behind that
    belongs to another text and is not kept.

    Args:
        key: what named the prompts, for error messages.

    Raises:
        ValueError: a prompt that is too long, leaves nothing to write, or has text that the tokenizer does
            not know; for autoregressive models one with text behind a blank.
    """
    prompts = [well_formed(prompt) for prompt in prompts]
    prior = module.generator.prior(1)[0].cpu()
    given, ends = prior.repeat(len(prompts), 1), []
    for row, prompt in zip(given, prompts, strict=True):
        ids, is_end = encode_prompt(prompt, module, key)
        if len(ids) > len(row):
            problem = f"has {len(ids)} tokens (bos and <end> counted), model.length={len(row)}"
            raise UserError(key, prompt, problem, "shorten it")
        blank = module.mask_id in ids
        if (is_end or len(ids) == len(row)) and not blank:
            problem = "leaves nothing to write"
            raise UserError(key, prompt, problem, f"put a blank like ____ into it, or leave out {END}")
        row[: len(ids)] = torch.tensor(ids)
        if (
            module.objective.settings.family == "autoregressive"
            and blank
            and _text_behind_a_blank(ids, module.mask_id)
        ):
            problem = "an autoregressive model writes from the left and cannot fill a blank that text follows"
            raise UserError(key, prompt, problem, "give the beginning alone, or use a masked model")
        ends.append(len(ids) if is_end else 0)
    return Starts(given, tuple(ends), report={"prompts": prompts})


def encode_prompt(prompt: str, module: TrainerBase, key: str) -> tuple[list[int], bool]:
    """The ids of a prompt, with masks in its blanks, bos and, for ``<end>``, eos; and whether it ends."""
    tokenizer, has_bos = module.tokenizer, module.tokenizer.bos_token_id is not None
    text = prompt.rstrip()
    is_end = text.endswith(END)
    text = text.removesuffix(END) if is_end else prompt
    if is_end and (not has_bos or tokenizer.eos_token_id is None):
        raise UserError(key, prompt, "the tokenizer has no token that ends a text", f"leave out {END}")
    if has_bos:
        text = text.removeprefix(tokenizer.bos_token)  # it is put there anyway
    ids: list[int] = []
    mask = tokenizer.mask_token
    blank = _BLANK if mask is None else f"(?:{re.escape(mask)}|{_BLANK})"
    parts = re.split(f"({blank})", text)  # text and single blanks in turn
    joins = joins_spaces(tokenizer)
    for number, part in enumerate(parts):
        if number % 2:
            ids.append(module.mask_id)
            continue
        part = part.replace(r"\_", "_")
        # Where a word's token holds the space in front of it, that space belongs to the blank.
        if joins and not (is_end and number == len(parts) - 1):
            part = part.removesuffix(" ")
        ids += encode(tokenizer, part, key, prompt) if part else []
    if has_bos:
        bos, eos = boundary_ids(tokenizer, module.config.data.eos)
        ids = [bos, *ids, eos] if is_end else [bos, *ids]
    return ids, is_end


def encode(tokenizer: PreTrainedTokenizerBase, text: str, key: str, prompt: str) -> list[int]:
    """The ids of a text without bos and eos; names of special tokens in it are text, as in training data.

    Raises:
        ValueError: the tokenizer does not know all of it; ``key`` and ``prompt`` are what the user gave.
    """
    settings = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    try:
        ids = tokenizer(text := well_formed(text), **settings)["input_ids"]
        unknown = [i for i, token in enumerate(ids) if token == unknown_id(tokenizer)]
    except Exception as error:
        if type(error) is not Exception:  # what the library raises for want of a token for unknown words
            raise
        ids, unknown = [], [0]
    if unknown:
        known = "write it like the text of the training"
        if len(ids) == len(text):  # one token a character
            wrong = "".join(dict.fromkeys(text[i] for i in unknown))
            raise UserError(key, prompt, f"the tokenizer does not know {wrong!r}", known)
        raise UserError(key, prompt, f"the tokenizer has no tokens for all of {text!r}", known)
    return ids


def joins_spaces(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word's token holds the space in front of it."""
    try:
        return len(tokenizer(" a", add_special_tokens=False)["input_ids"]) == 1
    except Exception:  # a tokenizer that does not know letters
        return True


def _text_behind_a_blank(ids: list[int], mask_id: int) -> bool:
    return any(token != mask_id for token in ids[ids.index(mask_id) :])


# Prefixes -----------------------------------------------------------------------------------------


def validation_prefixes(module: TrainerBase, cfg: DictConfig, count: int, dataset: TokenDataset) -> Starts:
    """The first ``cond_sampling.prefix_len`` tokens of ``count`` validation rows, bos included."""
    settings = cfg.cond_sampling
    official = settings.official_workers is not None
    rows = reference_rows(dataset, count, settings.min_seq_len, official=official)
    beginnings = dataset.fetch(rows)["input_ids"][:, : settings.prefix_len]
    given = module.generator.prior(1).cpu().repeat(count, 1)
    given[:, : settings.prefix_len] = beginnings
    report = {
        "seq_len": settings.seq_len,
        "prefix_len": settings.prefix_len,
        "num_cont_per_prefix": settings.num_cont_per_prefix,
        "fix_seed": settings.fix_seed,
        "official_workers": settings.official_workers,
        "prefix_rows": rows.tolist(),
        "prefixes": decode(module.tokenizer, beginnings, cfg.eval.decoding),
    }
    return Starts(
        given,
        (settings.seq_len,) * count,
        repeat=settings.num_cont_per_prefix,
        start_seed=settings.fix_seed if settings.fix_seed >= 0 else None,
        report=report,
    )


def reference_rows(
    dataset: TokenDataset, count: int, min_seq_len: int, seed: int = REFERENCE_SEED, *, official: bool = False
) -> np.ndarray:
    """Which validation rows serve as prefixes and human references: (count,) int64, in a random order that
    is the same for every model, sampler and ``seed`` of the configuration.

    Args:
        min_seq_len: rows with fewer tokens (padding does not count) are left out.
        official: take the order of the official program (``data.batching.official_permutation``).

    Raises:
        UserError: there are not so many such rows.
    """
    lengths = np.full(len(dataset), dataset.length) if dataset.lengths is None else dataset.lengths
    fitting = np.flatnonzero(lengths >= min_seq_len)
    if not len(fitting):
        problem = f"no validation text is so long, the longest has {lengths.max(initial=0)} tokens"
        raise UserError("cond_sampling.min_seq_len", min_seq_len, problem, "lower it")
    if count > len(fitting):
        raise UserError(
            "sampling.num_sample_batches",
            f"{count} prefixes in all",
            f"the validation set has {len(fitting)} texts of cond_sampling.min_seq_len={min_seq_len} tokens",
            "use fewer batches or a smaller loader.eval_batch_size",
        )
    order = official_permutation(len(fitting), seed) if official else permutation(len(fitting), seed, 0)
    return fitting[order[:count]]
