"""Pairs of settings that cannot both hold: each check raises one line with key, value and hint."""

from __future__ import annotations

from collections.abc import Callable

from omegaconf import DictConfig

from config.data_checks import refuse_data
from config.samplers import Declared, declared_samplers, named
from errors import UserError

SAMPLING_MODES = ("sample_eval", "sample_eval_with_tc", "cond_sample_eval_with_tc", "frontier")


def _model(cfg: DictConfig) -> None:
    model = cfg.model
    if model.hidden_size % model.n_heads:
        raise UserError(
            "model.n_heads",
            model.n_heads,
            f"does not divide model.hidden_size={model.hidden_size}",
            "choose a divisor",
        )
    if model.hidden_size // model.n_heads % 2:
        raise UserError(
            "model.n_heads",
            model.n_heads,
            f"makes heads of odd width {model.hidden_size // model.n_heads}, which cannot rotate",
            "choose another divisor of model.hidden_size",
        )
    if model.attention == "sdpa" and model.softcap > 0 and cfg.algo.name != "ar":
        problem = f"has no soft cap, which model.softcap={model.softcap:g} asks for"
        raise UserError("model.attention", "sdpa", problem, "use auto")
    if model.attention == "flash" and str(cfg.trainer.precision).startswith("32"):
        problem = f"computes in bf16, not in trainer.precision={cfg.trainer.precision}"
        raise UserError("model.attention", "flash", problem, "use auto, or trainer.precision=bf16")


def _size(cfg: DictConfig) -> None:
    """Raise for a network that no machine holds, before an allocator says so."""
    model = cfg.model
    width, symbols = model.hidden_size, cfg.data.vocab_size or 0
    masks = cfg.algo.get("num_mask", 0) * model.noise_dim
    parameters = model.n_blocks * width * (12 * width + 6 * model.cond_dim) + 2 * symbols * width + masks
    if parameters > 10**12:
        problem = f"with model.n_blocks={model.n_blocks} a network of {parameters:.1e} parameters"
        raise UserError("model.hidden_size", width, problem, "make it smaller")


def _objective(cfg: DictConfig) -> None:
    training, by_count = cfg.training, []
    if training.mask_sampling == "count":
        by_count.append("training.mask_sampling")
        if training.loss_type == "low_var":
            raise UserError(
                "training.loss_type",
                "low_var",
                "has no meaning with training.mask_sampling=count",
                "use training.loss_type=nelbo",
            )
    if cfg.eval.nelbo == "count":
        by_count.append("eval.nelbo")
    if by_count and cfg.algo.time_conditioning:
        raise UserError(
            by_count[0],
            "count",
            "there is no time to condition on (algo.time_conditioning=True)",
            f"use {by_count[0]}=time",
        )


def _sampling(cfg: DictConfig) -> None:
    sampling = cfg.sampling
    if sampling.predictor is not None:
        samplers = named(sampling.predictor)
        if not samplers:
            names = sorted({name for one in declared_samplers() for name in one.names})
            raise UserError("sampling.predictor", sampling.predictor, "no such sampler", _one_of(names))
        _removal(cfg, f"sampling.predictor={sampling.predictor}", samplers)
    _order(cfg)
    if sampling.semi_ar and sampling.stride_length >= cfg.model.length:
        raise UserError(
            "sampling.stride_length",
            sampling.stride_length,
            f"keeps nothing of a window of model.length={cfg.model.length}",
            "use a smaller one",
        )


def _removal(cfg: DictConfig, which: str, samplers: list[Declared]) -> None:
    """The last step is one that ``samplers``, which the words ``which`` chose, can make."""
    removal, able = cfg.sampling.noise_removal, [r for one in samplers for r in one.removals]
    if removal not in able:
        problem = f"{which} leaves no mask" if removal == "none" else f"{which} has no such last step"
        hint = f"use {' or '.join(dict.fromkeys(able))}"
        raise UserError("sampling.noise_removal", removal, problem, hint)


def _order(cfg: DictConfig) -> None:
    sampling = cfg.sampling
    if sampling.order == "random":
        return
    able = [one for one in declared_samplers() if one.order == sampling.order]
    names = [name for one in able for name in one.names]
    if sampling.predictor not in (None, *names):
        raise UserError(
            "sampling.order",
            sampling.order,
            f"sampling.predictor={sampling.predictor} has an order of its own",
            f"use sampling.order=random or sampling.predictor={names[0]}",
        )
    _removal(cfg, f"sampling.order={sampling.order}", able)


def _one_of(names: list[str]) -> str:
    return f"use one of {', '.join(names)}"


def _pairs(cfg: DictConfig) -> None:
    if cfg.mode == "generate_reflow_dataset" and cfg.data.train == "reflow":
        problem = "pairs are made from text, not from pairs"
        raise UserError("data", cfg.data.name, problem, "use the data that the model was trained on")
    if cfg.mode == "generate_reflow_dataset" and cfg.sampling.noise_removal == "none":
        raise UserError(
            "sampling.noise_removal", "none", "would leave masks or noise in the texts", "use ancestral"
        )


def _schedule(cfg: DictConfig) -> None:
    scheduler = cfg.lr_scheduler
    if scheduler.name != "cosine_decay_warmup":
        return
    for name in ("min_lr", "first_lr"):
        if scheduler[name] is not None and scheduler[name] >= cfg.optim.lr:
            problem = f"not below optim.lr={cfg.optim.lr}"
            raise UserError(f"lr_scheduler.{name}", scheduler[name], problem, "lower it")


def _validation(cfg: DictConfig) -> None:
    trainer = cfg.trainer
    interval, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if (epochs or 1) > 1 and interval not in (None, 1.0):
        problem = f"trainer.val_check_interval={interval} says when already"
        hint = "use trainer.val_check_interval=null with it"
        raise UserError("trainer.check_val_every_n_epoch", epochs, problem, hint)
    if cfg.data.streaming and cfg.mode == "train" and not isinstance(interval, int):
        problem = "data.streaming=True has no length of which this could be a part"
        shown = "null" if interval is None else interval
        raise UserError("trainer.val_check_interval", shown, problem, "give a number of batches")
    best = cfg.callbacks.checkpoint_monitor
    if best is None or cfg.mode != "train":
        return
    if "/" in best.filename or "{" in best.filename:
        key = "callbacks.checkpoint_monitor.filename"
        raise UserError(
            key, best.filename, "not a plain name", "give one like best, and dirpath for a folder"
        )
    kind, _, steps = best.monitor.rpartition("_T")
    if kind in ("val/gen_ppl", "val/sample_entropy"):
        _refuse_idle_monitor(cfg, best.monitor, kind, steps)


def _refuse_idle_monitor(cfg: DictConfig, monitor: str, kind: str, steps: str) -> None:
    """Raise when the samples that are to decide on best.ckpt are not made or not judged."""
    key = "callbacks.checkpoint_monitor.monitor"
    if steps not in map(str, (*cfg.sampling.steps, cfg.model.length)):  # the last: one call a token
        problem = f"sampling.steps={','.join(map(str, cfg.sampling.steps))} has no {steps}"
        raise UserError(key, monitor, problem, "monitor one of these")
    is_made = cfg.eval.generate_samples and cfg.sampling.num_sample_batches
    if not is_made or kind == "val/gen_ppl" and not cfg.eval.compute_generative_perplexity:
        wanted = "eval.generate_samples=True, sampling.num_sample_batches >= 1"
        if kind == "val/gen_ppl":
            wanted += ", eval.compute_generative_perplexity=True"
        raise UserError(key, monitor, "no validation measures it", f"needs {wanted}")


def _mode(cfg: DictConfig) -> None:
    if cfg.mode in SAMPLING_MODES and not cfg.sampling.num_sample_batches:
        problem = f"mode={cfg.mode} is there to sample"
        raise UserError("sampling.num_sample_batches", 0, problem, "give a number >= 1")
    if (
        cfg.mode not in ("train", "gen_ppl_eval", "frontier", "judge", "plan")
        and not cfg.eval.checkpoint_path
    ):
        raise UserError(
            "eval.checkpoint_path",
            "''",
            f"mode={cfg.mode} evaluates a checkpoint",
            "give eval.checkpoint_path=.../last.ckpt",
        )


def _prompts(cfg: DictConfig) -> None:
    if cfg.sampling.prompt is not None and cfg.sampling.prompt_file is not None:
        problem = "sampling.prompt is given as well"
        raise UserError("sampling.prompt_file", cfg.sampling.prompt_file, problem, "leave one of them out")


def _conditional(cfg: DictConfig) -> None:
    if cfg.mode != "cond_sample_eval_with_tc":
        return
    settings, length, sampling = cfg.cond_sampling, cfg.model.length, cfg.sampling
    written = length + (sampling.num_strides * sampling.stride_length if sampling.semi_ar else 0)
    checks = (
        ("prefix_len", settings.prefix_len >= length, f"leaves nothing to write of model.length={length}"),
        (
            "seq_len",
            settings.seq_len <= settings.prefix_len,
            f"keeps nothing behind cond_sampling.prefix_len={settings.prefix_len}",
        ),
        ("seq_len", settings.seq_len > written, f"only {written} tokens are written"),
        (
            "min_seq_len",
            settings.min_seq_len > length,
            f"no validation block is so long, they have model.length={length}",
        ),
        (
            "min_seq_len",
            settings.min_seq_len < settings.prefix_len,
            f"lets in texts shorter than cond_sampling.prefix_len={settings.prefix_len}",
        ),
    )
    hints = ("use a smaller one", "use a larger one", f"use at most {written}", f"use {length}", "raise it")
    for (name, is_wrong, problem), hint in zip(checks, hints, strict=True):
        if is_wrong:
            raise UserError(f"cond_sampling.{name}", settings[name], problem, hint)


def _frontier(cfg: DictConfig) -> None:
    if cfg.mode != "frontier":
        return
    if not cfg.frontier.checkpoints:
        hint = "give frontier.checkpoints=name:path,name:path or eval.checkpoint_path"
        raise UserError("frontier.checkpoints", "''", "mode=frontier evaluates checkpoints", hint)
    if not cfg.eval.compute_generative_perplexity:
        hint = "use True, with eval.gen_ppl_eval_model_name_or_path for the judge"
        raise UserError("eval.compute_generative_perplexity", False, "mode=frontier is about it", hint)
    for predictor in cfg.frontier.predictors:
        tried = cfg.copy()
        tried.sampling.predictor = predictor
        _sampling(tried)


def _judge(cfg: DictConfig) -> None:
    if cfg.mode == "judge" and not cfg.judge.files:
        hint = "give judge.files=name:samples.json,other:samples.txt or checkpoints"
        raise UserError("judge.files", "''", "mode=judge scores samples", hint)


def _zero_shot(cfg: DictConfig) -> None:
    if cfg.mode == "zero_shot" and not cfg.zero_shot.datasets:
        hint = "give names like wikitext2,ptb"
        raise UserError("zero_shot.datasets", "''", "mode=zero_shot evaluates data sets", hint)


CONTRADICTIONS: tuple[Callable[[DictConfig], None], ...] = (
    _model,
    _size,
    _objective,
    _sampling,
    _pairs,
    _schedule,
    _validation,
    _mode,
    _prompts,
    _conditional,
    _frontier,
    _judge,
    _zero_shot,
    refuse_data,
)
