"""Tokenizers and batches from the configuration; the one reader of ``cfg.data`` and ``cfg.loader``."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.utils.data import DataLoader

from config.algo import settings_of
from data import tokenizers
from data.batching import GlobalBatchSampler, ShardedSequentialSampler
from data.dataset import TokenDataset
from data.generated import Role
from data.places import DatasetRequest, SourceOverride, shared_text
from data.prepare import PreprocessingConfig, prepare
from data.reflow import KEY, MANIFEST, REFLOW, ReflowDataset, read_manifest
from data.streaming import StreamBatches, StreamRecipe, TokenStream
from errors import UserError
from utils import get_logger

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Below this size the system keeps the tokens in memory, and worker processes cost more than they fetch.
_IN_MEMORY = 2**28
_MANY_WORKERS = 2
AUTO = "auto"  # settings of a reflow data set that its manifest knows
log = get_logger("data")


def data_settings(cfg: DictConfig) -> DictConfig:
    """``cfg.data``; of reflow pairs, what is left at ``auto`` is what their manifest says, if there is one.

    With ``data.valid=auto`` the validation set and how it becomes rows are those of the pairs' own data;
    without a manifest the texts of the pairs are the validation set, as in the official implementation.
    """
    data = cfg.data
    left_open = [key for key in ("tokenizer_name_or_path", "valid", "cache_dir") if data[key] == AUTO]
    if data.train != REFLOW or not left_open:
        return data
    folder = Path(cfg.reflow.save_path).expanduser()
    manifest = read_manifest(folder)
    if manifest is None:
        ReflowDataset(folder)  # raises when there are no pairs at all
        instead = {"cache_dir": f"./cache/{data.name}", "valid": REFLOW}
        return OmegaConf.merge(data, {key: instead[key] for key in left_open if key in instead})
    try:
        return _from_maker(data, manifest["data"], left_open)
    except (TypeError, KeyError, AttributeError, OmegaConfBaseException) as error:
        problem = f"the section data of its {MANIFEST} is odd ({' '.join(str(error).split())[:100]})"
        hint = "give data.valid, data.tokenizer_name_or_path and data.cache_dir"
        raise UserError(KEY, str(folder), problem, hint) from error


def _from_maker(data: DictConfig, made_of: Mapping[str, Any], left_open: list[str]) -> DictConfig:
    """``data`` with the settings ``left_open`` as in those, ``made_of``, of who made the pairs."""
    found: dict[str, Any] = {}
    if "valid" in left_open:
        left_open = [*left_open, "name", "valid_revision", "wrap", "insert_valid_eos", "eos"]
        typed = {key: value for key, value in data.valid_source.items() if value is not None}
        found["valid_source"] = SourceOverride.of(made_of, "validation").typed() | typed
        found["source"] = made_of.get("source", {})
        found["source_root"] = data.source_root or made_of.get("source_root")
    if "tokenizer_name_or_path" in left_open:
        left_open = [*left_open, "vocab_size"]
    return OmegaConf.merge(data, {key: made_of[key] for key in left_open} | found)


def _known(cfg: DictConfig, data: DictConfig, key: str) -> str:
    if data.train == REFLOW and data[key] == AUTO:
        problem = f"reflow.save_path={cfg.reflow.save_path} has no manifest that names it"
        raise UserError(f"data.{key}", AUTO, problem, f"give data.{key}")
    return data[key]


def get_tokenizer(cfg: DictConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of ``data.tokenizer_name_or_path`` (``data.vocab_size`` is for synthetic-align)."""
    data = data_settings(cfg)
    tokenizer = tokenizers.get_tokenizer(_known(cfg, data, "tokenizer_name_or_path"), data.vocab_size)
    tokenizers.name_mask(tokenizer, OmegaConf.select(cfg, "model.mask_token_id"))
    return tokenizer


def pair_settings(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What reflow pairs depend on and share with their reader: tokenizer, length, process, mask noise."""
    is_uniform = settings_of(cfg).family == "uniform"
    mask_id, vocab_size = (None, None) if is_uniform else tokenizers.mask_id_of(tokenizer)
    algo, mask_noise = cfg.algo, None
    if "noise_type" in algo and not algo.as_mdlm:
        mask_noise = {
            "type": algo.noise_type,
            "scale": algo.noise_scale,
            "dim": cfg.model.noise_dim,
            "num_mask": algo.num_mask,
        }
    return {
        "tokenizer": {
            "name": tokenizer.name_or_path or data_settings(cfg).tokenizer_name_or_path,
            "vocabulary": tokenizers.vocabulary_digest(tokenizer),
            "vocab_size": tokenizers.number_of_ids(tokenizer) if is_uniform else vocab_size,
            "mask_id": mask_id,
        },
        "length": cfg.model.length,
        "process": "uniform" if is_uniform else "absorbing",
        "schedule": {"name": cfg.noise.name, "eps": cfg.noise.eps},
        "mask_noise": mask_noise,
    }


def _reflow_pairs(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> ReflowDataset:
    pairs = ReflowDataset(Path(cfg.reflow.save_path).expanduser())
    settings = pair_settings(cfg, tokenizer)
    reads_seeds = not cfg.algo.get("ignore_seed", True)
    coupled = settings_of(cfg).needs_coupled_pairs and reads_seeds
    use_seeds = coupled or (settings["mask_noise"] is not None and reads_seeds)
    from_noise = cfg.algo.get("onestep_mode", False)
    pairs.check(settings, use_seeds=use_seeds, from_noise=from_noise, coupled=coupled)
    return pairs


def _texts_of_pairs(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> ReflowDataset:
    pairs = ReflowDataset(Path(cfg.reflow.save_path).expanduser())
    pairs.check_text(pair_settings(cfg, tokenizer))
    log.warning("validation is on the texts of the pairs in %s: no measure for other text", pairs.folder)
    return pairs


def get_dataset(
    cfg: DictConfig, tokenizer: PreTrainedTokenizerBase, role: Role, *, official_workers: int | None = None
) -> TokenDataset:
    """The prepared rows for training or validation; made and cached on first use.

    Processes that share ``data.cache_dir`` may call this at the same time: one prepares, the others wait.

    Args:
        official_workers: see ``data.prepare.PreprocessingConfig``.
    """
    data = data_settings(cfg)
    train = role == "train"
    if train and data.train == REFLOW:
        return _reflow_pairs(cfg, tokenizer)
    if not train and data.valid == REFLOW:
        return _texts_of_pairs(cfg, tokenizer)
    source = data.train if train else _known(cfg, data, "valid")
    choice = SourceOverride.of(data, role)
    recipe = PreprocessingConfig(
        source=source,
        role=role,
        length=cfg.model.length,
        wrap=data.wrap,
        insert_eos=data.insert_train_eos if train else data.insert_valid_eos,
        eos=data.eos,
        rules=data.name,
        revision=data.train_revision if train else data.valid_revision,
        cache_dir=Path(data.cache_dir).expanduser(),
        choice=choice,
        root=_root(data),
        streamed=data.streaming,
        official_workers=official_workers,
    )
    if not train:
        _warn_of_training_text(data, recipe.wanted())
    return prepare(recipe, tokenizer)


def _warn_of_training_text(data: DictConfig, valid: DatasetRequest) -> None:
    if data.train == REFLOW:
        return
    choice = SourceOverride.of(data, "train")
    train = DatasetRequest(
        data.train, "train", data.name, valid.cache_dir, valid.root, choice, data.streaming
    )
    with contextlib.suppress(UserError):  # where nothing is trained, its text need not be there
        if how := shared_text(train, valid):
            where = valid.choice.path or valid.name
            log.warning("data.valid=%s %s: no measure for other text", where, how)


def _root(data: DictConfig) -> Path | None:
    return None if data.source_root is None else Path(data.source_root).expanduser()


def _stream(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase) -> TokenStream:
    """The training text as a stream of rows, looked at and found to be readable."""
    data = cfg.data
    choice = SourceOverride.of(data, "train")
    if data.train_revision is not None:
        choice = replace(choice, revision=data.train_revision)
    where = Path(data.cache_dir).expanduser(), _root(data)
    stream = TokenStream(
        StreamRecipe(
            wanted=DatasetRequest(data.train, "train", data.name, *where, choice, streamed=True),
            length=cfg.model.length,
            insert_eos=data.insert_train_eos,
            eos=data.eos,
            global_batch_size=cfg.loader.global_batch_size,
            shuffle_buffer=data.shuffle_buffer,
            seed=cfg.seed,
        ),
        tokenizer,
    )
    stream.check()
    return stream


def batch_sizes(cfg: DictConfig, world_size: int, *, evaluation: bool = False) -> tuple[int, int]:
    """``(sequences per device and pass, passes per optimizer step)``.

    ``loader.batch_size=null`` takes the whole share of a device at once. Evaluation makes one pass a
    batch; its sizes need not divide anything.

    Raises:
        ValueError: the global batch cannot be divided so; the message names a size that can.
    """
    loader = cfg.loader
    if evaluation:
        share = -(-loader.eval_global_batch_size // world_size)
        return loader.eval_batch_size or share, 1
    share, rest = divmod(loader.global_batch_size, world_size)
    if rest or not share:
        raise UserError(
            "loader.global_batch_size",
            loader.global_batch_size,
            f"it cannot be divided over {world_size} devices",
            f"use a multiple of {world_size}, for instance {(share + 1) * world_size}",
        )
    per_device = share if loader.batch_size is None else loader.batch_size
    if per_device < 1 or share % per_device:
        fitting = max(s for s in range(1, share + 1) if share % s == 0 and s <= max(per_device, 1))
        raise UserError(
            "loader.batch_size",
            per_device,
            f"the share of a device in loader.global_batch_size={loader.global_batch_size} is "
            f"{share} ({world_size} devices), not a multiple of it",
            f"use for instance {fitting}",
        )
    return per_device, share // per_device


def get_train_dataloader(
    cfg: DictConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    rank: int = 0,
    world_size: int = 1,
    start_step: int = 0,
) -> DataLoader[dict[str, torch.Tensor]]:
    """An endless loader of this rank's micro-batches, starting at an optimizer step.

    A batch is a dict of ``input_ids`` (B, L) int64, ``attention_mask`` (B, L) bool and ``row`` (B,) int64,
    the position in the optimizer step's global batch. ``batch_sizes`` tells how many make a step. Padded
    data give ``num_tokens`` as well, 0-d: tokens of the global batch / number of its micro-batches.
    """
    per_device, _ = batch_sizes(cfg, world_size)
    if cfg.data.streaming:
        where = {"rank": rank, "world_size": world_size, "start_step": start_step, "cycle": _cycle(cfg, 0)}
        return _loader(cfg, StreamBatches(_stream(cfg, tokenizer), per_device, **where))
    dataset = get_dataset(cfg, tokenizer, "train")
    size = cfg.loader.global_batch_size
    if cfg.loader.drop_last and len(dataset) < size:
        raise UserError(
            "loader.global_batch_size",
            size,
            f"the training data has {len(dataset)} rows only",
            "use a smaller batch, or loader.drop_last=False to let a batch run over epochs",
        )
    sampler = GlobalBatchSampler(
        len(dataset),
        size,
        per_device,
        rank=rank,
        world_size=world_size,
        seed=cfg.seed,
        start_step=start_step,
        drop_last=cfg.loader.drop_last,
        lengths=dataset.lengths,
        cycle=_cycle(cfg, len(dataset)),
    )
    return _loader(cfg, dataset, sampler)


def _cycle(cfg: DictConfig, num_rows: int) -> int | None:
    """Optimizer steps after which the first batches come again, by ``trainer.limit_train_batches``."""
    limit = OmegaConf.select(cfg, "trainer.limit_train_batches")
    if not limit or limit == 1 and isinstance(limit, float):
        return None
    if isinstance(limit, float):
        return max(1, int(limit * num_rows) // cfg.loader.global_batch_size)
    return limit


def get_valid_dataloader(
    cfg: DictConfig, tokenizer: PreTrainedTokenizerBase, *, rank: int = 0, world_size: int = 1
) -> DataLoader[dict[str, torch.Tensor]]:
    """This rank's part of the validation data, each row once, the last partial batch included.

    Batches as in training; ``row`` is the index in the data set.
    """
    per_device, _ = batch_sizes(cfg, world_size, evaluation=True)
    dataset = get_dataset(cfg, tokenizer, "validation")
    sampler = ShardedSequentialSampler(len(dataset), per_device, rank=rank, world_size=world_size)
    return _loader(cfg, dataset, sampler)


def _loader(
    cfg: DictConfig,
    dataset: TokenDataset | StreamBatches,
    sampler: GlobalBatchSampler | ShardedSequentialSampler | None = None,
) -> DataLoader[dict[str, torch.Tensor]]:
    streams = isinstance(dataset, StreamBatches)
    workers = _num_workers(cfg.loader.num_workers, dataset)
    if workers:
        # Said before the fork: the tokenizers library otherwise prints a warning in each worker.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    pin = torch.cuda.is_available() if cfg.loader.pin_memory is None else cfg.loader.pin_memory
    return DataLoader(
        dataset,
        **({"batch_size": None} if streams else {"batch_sampler": sampler}),
        num_workers=workers,
        collate_fn=_as_it_is,
        persistent_workers=workers > 0,
        pin_memory=pin and torch.cuda.is_available(),
        # The threads in which texts are tokenised do not survive a fork.
        multiprocessing_context="spawn" if streams and workers else None,
    )


def _num_workers(asked: int | None, dataset: TokenDataset | StreamBatches) -> int:
    if isinstance(dataset, StreamBatches):  # at most one, which tokenises in threads
        return min(1, asked) if asked is not None and asked >= 0 else int(torch.cuda.is_available())
    if asked is not None and asked >= 0:
        return asked
    if dataset.nbytes <= _IN_MEMORY:
        return 0
    return min(_MANY_WORKERS, (os.cpu_count() or 1) - 1)


def _as_it_is(batch: dict[str, Any]) -> dict[str, Any]:
    """The data set already hands out whole micro-batches."""
    return batch
