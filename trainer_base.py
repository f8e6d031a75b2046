"""What trains an objective: backbone, EMA, optimizer, Lightning's hooks. No mathematics lives here.

Shapes: B sequences of a micro-batch, L positions, V vocabulary with the mask.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase

from algorithms.objective import BoundDenoiser, Objective, RoundObjective
from diffusion.objectives import LossOutput
from diffusion.randomness import Stream, row_keys
from generation import Generator
from metrics import Nelbo
from models.dit import BackboneConfig, DiT, MaskNoiseConfig
from models.ema import ExponentialMovingAverage
from models.hf import HfBackbone, HfConfig, refuse_other_base
from models.lora import LoraConfig
from models.precision import Precision
from models.sharding import collected, gathered, shard
from optimizers import WatchedModule, make_optimizer, train_only
from schedulers import lr_multiplier
from training.rounds import RoundDistillation


class TrainerBase(WatchedModule):
    """A backbone that learns an objective, for Lightning.

    Args:
        objective: the algorithm (algorithms/).
        config: the composed configuration (config/run.py).
        tokenizer: of the texts.

    Attributes:
        backbone: the network; the only part with parameters.
        denoiser: objective and backbone as samplers see them.
        generator: writes text with them (generation.py).
        rounds: the teacher of a distillation in rounds, else None.
        ema: the averaged weights, or None.
    """

    def __init__(self, objective: Objective, config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.objective = objective
        self.config = config
        self.tokenizer = tokenizer
        self.mask_id, self.vocab_size = objective.mask_id, objective.vocab_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.backbone = self.make_backbone()
        train_only(self.backbone, config.optim.ln_tune)
        self.backbone.precision = Precision.resolve(config.trainer.precision, config.trainer.accelerator)
        self.backbone.compile_blocks(config.model.compile)
        self.backbone.checkpointing = config.training.activation_checkpointing
        self.denoiser = BoundDenoiser(objective, self.backbone)
        self.generator = Generator(self.denoiser, config)
        decay = config.training.ema
        self.ema = ExponentialMovingAverage(self.named_parameters(), decay) if decay > 0 else None
        self.train_nelbo, self.valid_nelbo = Nelbo(), Nelbo()
        is_in_rounds = isinstance(objective, RoundObjective)
        self.rounds = RoundDistillation(self, objective) if is_in_rounds else None

    def loss(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> LossOutput:
        """The loss of a micro-batch (``Objective.loss``); in rounds, and in training, that of the teacher."""
        with self.attending(batch):
            return self._loss(batch, step, num_rows, training)

    def attending(self, batch: dict[str, Tensor]) -> contextlib.AbstractContextManager[None]:
        """Inside the block a network that knows padding sees that of ``batch``."""
        if not isinstance(self.backbone, HfBackbone):  # padding is text to the official network
            return contextlib.nullcontext()
        return self.backbone.attending(batch["attention_mask"])

    def _loss(self, batch: dict[str, Tensor], step: int, num_rows: int, training: bool) -> LossOutput:
        if training and self.rounds is not None:
            return self.rounds.distill(batch, step=step, num_rows=num_rows, training=True).output
        return self.objective.loss(self.backbone, batch, step=step, num_rows=num_rows, training=training)

    def reconfigure(self, config: DictConfig) -> None:
        """Sample and evaluate by another configuration of the same model: its seed and ``sampling.*``."""
        self.config = self.generator.config = config
        self.objective.context = dataclasses.replace(self.objective.context, seed=config.seed)
        self.generator.choose_sampler()

    # Construction ---------------------------------------------------------------------------------

    def make_backbone(self) -> DiT | HfBackbone:
        """The network, with the weights that it starts from."""
        config = self.backbone_config()
        if "path" not in self.config.model:
            return DiT(config)
        model, lora = self.config.model, self.config.lora
        return HfBackbone(
            HfConfig(
                **vars(config),
                path=model.path,
                trust_remote_code=model.trust_remote_code,
                base_dtype=model.base_dtype,
                lora=LoraConfig(lora.rank, lora.alpha or 2.0 * lora.rank, lora.targets)
                if lora.rank
                else None,
            )
        )

    def backbone_config(self) -> BackboneConfig:
        """The network's hyper-parameters as the configuration and the tokenizer give them."""
        model = self.config.model
        noise = self.objective.mask_noise(model.noise_dim)
        return BackboneConfig(
            vocab_size=self.vocab_size,
            mask_id=None if self.objective.settings.family == "uniform" else self.mask_id,
            hidden_size=model.hidden_size,
            cond_dim=model.cond_dim,
            n_blocks=model.n_blocks,
            n_heads=model.n_heads,
            length=model.length,
            dropout=model.dropout,
            softcap=model.softcap,
            qk_norm=model.qk_norm,
            causal=self.objective.settings.causal,
            attention=model.attention,
            mask_noise=None if noise is None else MaskNoiseConfig(**noise),
        )

    @property
    def uses_ema(self) -> bool:
        """Whether evaluation is with the averaged weights."""
        return self.ema is not None and not self.config.eval.disable_ema

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Evaluate with the averaged weights inside the block (the raw ones when EMA is off)."""
        with self.ema.applied(self) if self.uses_ema else contextlib.nullcontext():
            yield

    def shard(self, mesh: DeviceMesh) -> None:
        """Leave this device its shards of weights and averages (models/sharding.py): before the optimizer is
        made, and of modules that are the same on all devices."""
        shard(self.backbone, mesh)
        if self.ema is not None:
            self.ema.follow_shards(self.named_parameters())

    # Optimisation ---------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        optim = OmegaConf.to_container(self.config.optim)
        optimizer = make_optimizer(self, optim)
        multiplier = lr_multiplier(
            OmegaConf.to_container(self.config.lr_scheduler), optim["lr"], self.config.trainer.max_steps
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self._seed_dropout(batch_idx)
        output = self.loss(
            batch, step=self.global_step, num_rows=self.config.loader.global_batch_size, training=True
        )
        self.train_nelbo.update(output.token_nll, output.loss_mask)
        self.watch_loss(output.loss)
        return output.loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update()
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:
            self._log_training()

    def on_fit_start(self) -> None:
        self.objective.prepare()
        self.objective.begin(self.backbone)
        if self.rounds is not None:
            self.rounds.begin()

    def on_train_start(self) -> None:
        if self.rounds is not None:  # a checkpoint at the end of a round is written before the round ends
            self.rounds.end_if_due()

    def on_train_batch_end(self, *args: Any) -> None:
        if self.rounds is not None:
            self.rounds.end_if_due()

    def _log_training(self) -> None:
        self.check_finite()
        # The NELBO of all batches since the last line of the log, not of this one alone.
        result = self.train_nelbo.compute()
        self.train_nelbo.reset()
        self.log("trainer/loss", self.step_loss, sync_dist=True)
        self.log("train/grad_norm", self.grad_norm)
        self.log_dict({f"train/{name}": result[name] for name in ("nll", "bpd", "ppl")})
        if self.rounds is not None:
            self.log_dict(self.rounds.logged())

    def _seed_dropout(self, batch_idx: int) -> None:
        # Dropout is the one draw that PyTorch takes from its global generator: tying that to the step, the
        # micro-batch and the rank makes a resumed run equal to an uninterrupted one.
        if self.config.model.dropout > 0:
            part = (
                batch_idx % self.trainer.accumulate_grad_batches * self.trainer.world_size + self.global_rank
            )
            key = row_keys(self.config.seed, Stream.DROPOUT, self.global_step, torch.tensor(part))
            torch.manual_seed(int(key))

    # Validation -----------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.valid_nelbo.reset()
        if self.rounds is not None:
            self.rounds.valid_divergence.reset()
        # Shards are gathered once for all batches and samples, of which devices need not have equally many.
        self._validation = contextlib.ExitStack()
        if isinstance(self.backbone, FSDPModule):
            self._validation.enter_context(self.ema_weights())
            self._validation.enter_context(gathered(self.backbone))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        with self.ema_weights():
            if self.rounds is not None and self.rounds.teacher is not None:
                with self.attending(batch):
                    output = self.rounds.validate(batch, self.num_valid_rows())
            else:
                output = self.loss(batch, step=0, num_rows=self.num_valid_rows(), training=False)
        self.valid_nelbo.update(output.token_nll, output.loss_mask)

    def num_valid_rows(self) -> int:
        """Rows of the validation set, over which its noise levels are stratified."""
        return len(self.trainer.val_dataloaders.dataset)

    def on_validation_epoch_end(self) -> None:
        result = self.valid_nelbo.compute()
        self.log_dict({f"val/{name}": result[name] for name in ("nll", "bpd", "ppl")}, sync_dist=True)
        if self.rounds is not None:
            self.rounds.log_validation()
        self._validation.close()  # callbacks have sampled before

    # Checkpoints ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        self.save_to(checkpoint)
        if self.rounds is not None:
            self.rounds.save(checkpoint)

    def save_to(self, checkpoint: dict[str, Any]) -> None:
        """Put what evaluation and later trainings need into a checkpoint; no teacher."""
        # Plain containers and tensors only: a checkpoint must be readable without running code from it.
        checkpoint["config"] = OmegaConf.to_container(self.config, resolve=True)
        names, sums = zip(*self.train_nelbo.metric_state.items(), strict=True)
        checkpoint["train_nelbo"] = dict(zip(names, self.over_devices(torch.stack(sums)).cpu(), strict=True))
        if isinstance(self.backbone, HfBackbone) and self.backbone.base_hash is not None:
            checkpoint["base"] = {"path": self.config.model.path, "hash": self.backbone.base_hash}
        if self.ema is not None:
            checkpoint["ema"] = collected(self.ema.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        resumed = str(self.config.checkpointing.resume_ckpt_path)
        refuse_other_base(self.backbone, checkpoint, key="checkpointing.resume_ckpt_path", path=resumed)
        if self.rounds is not None:
            self.rounds.check(checkpoint)
        if self.ema is not None and "ema" in checkpoint:
            self.ema.load_state_dict(checkpoint["ema"])
        if self.global_rank == 0:  # the sums of all devices, to be counted once
            for name, value in checkpoint.get("train_nelbo", {}).items():
                getattr(self.train_nelbo, name).copy_(value)
        if self.rounds is not None:
            self.rounds.load(checkpoint)
