"""What every algorithm shares: backbone, EMA, optimizer, hooks, sampling. No mathematics lives here.

Shapes: B sequences of a micro-batch, L positions, V vocabulary with the mask.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase

from data.tokenizers import mask_id_of
from diffusion.noise import get_schedule
from diffusion.objectives import LossOutput
from diffusion.parameterization import Prediction
from diffusion.process import Absorbing
from diffusion.randomness import Stream, row_keys
from diffusion.uniform import Uniform
from generation import GeneratingModule
from metrics import Nelbo
from models.dit import BackboneConfig, DiT, MaskNoiseConfig
from models.ema import ExponentialMovingAverage
from models.precision import Precision
from models.sharding import collected, gathered, shard
from optimizers import adamw, train_only
from schedulers import lr_multiplier


class TrainerBase(GeneratingModule):
    """An algorithm for Lightning: subclasses say what the loss, the denoiser and the mask noise are.

    Args:
        config: the composed configuration (config/schema.py).
        tokenizer: gives the vocabulary size and the mask id.
    """

    needs_pairs: ClassVar[bool] = False  # trains on stored pairs (data/reflow.py), not on text
    exact_likelihood: ClassVar[bool] = False  # the loss is no bound, and eval.nelbo has no say

    def __init__(self, config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.mask_id, self.vocab_size = self.vocabulary()
        self.process = self.forward_process()
        self.schedule = get_schedule(config.noise.name, config.noise.eps)
        self.choose_sampler()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.backbone = DiT(self.backbone_config())
        train_only(self.backbone, config.optim.ln_tune)
        self.backbone.precision = Precision.resolve(config.trainer.precision, config.trainer.accelerator)
        self.backbone.compile_blocks(config.model.compile)
        self.backbone.checkpointing = config.training.activation_checkpointing
        self.ema = self._make_ema()
        self.train_nelbo, self.valid_nelbo = Nelbo(), Nelbo()

    # What an algorithm says of itself -------------------------------------------------------------

    def vocabulary(self) -> tuple[int, int]:
        """The id that stands where nothing is written yet, and V."""
        return mask_id_of(self.tokenizer)

    def forward_process(self) -> Absorbing | Uniform:
        """How text becomes noise."""
        return Absorbing(self.mask_id)

    def mask_noise_config(self) -> MaskNoiseConfig | None:
        """The random state of masks; None for a single deterministic mask."""
        return None

    def draw_cond(self, keys: Tensor, length: int) -> Tensor | None:
        """What the network sees beside (xt, sigma), drawn from row keys (B,); None when there is nothing."""
        return None

    def refresh_cond(self, cond: Tensor | None, where: Tensor, keys: Tensor) -> Tensor | None:
        """``cond`` with fresh draws at the positions ``where`` (B, L)."""
        return cond

    def denoise(self, xt: Tensor, sigma: Tensor, cond: Tensor | None = None) -> Prediction:
        """Run the network's body on xt (B, L) at sigma (B,); the prediction computes the rest on demand."""
        raise NotImplementedError

    def loss(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> LossOutput:
        """The loss of a micro-batch whose rows are ``batch["row"]`` of ``num_rows`` (B, L tokens)."""
        raise NotImplementedError

    def finished(self, step: int) -> str | None:
        """Why training is over after ``step`` optimizer steps, before ``trainer.max_steps``; else None."""
        return None

    @property
    def loss_dtype(self) -> torch.dtype:
        """Losses are in float32 or better, whatever the network computes in."""
        return torch.float64 if self.config.training.loss_precision == "float64" else torch.float32

    # Construction ---------------------------------------------------------------------------------

    def backbone_config(self) -> BackboneConfig:
        """The network's hyper-parameters as the configuration and the tokenizer give them."""
        model = self.config.model
        return BackboneConfig(
            vocab_size=self.vocab_size,
            mask_id=None if self.family == "uniform" else self.mask_id,
            hidden_size=model.hidden_size,
            cond_dim=model.cond_dim,
            n_blocks=model.n_blocks,
            n_heads=model.n_heads,
            length=model.length,
            dropout=model.dropout,
            softcap=model.softcap,
            qk_norm=model.qk_norm,
            causal=False,
            attention=model.attention,
            mask_noise=self.mask_noise_config(),
        )

    def _make_ema(self) -> ExponentialMovingAverage | None:
        decay = self.config.training.ema
        return ExponentialMovingAverage(self.named_parameters(), decay) if decay > 0 else None

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
        optimizer = adamw(self.trainable(), optim)
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

    def _log_training(self) -> None:
        self.check_finite()
        # The NELBO of all batches since the last line of the log, not of this one alone.
        result = self.train_nelbo.compute()
        self.train_nelbo.reset()
        self.log("trainer/loss", self.step_loss, sync_dist=True)
        self.log("train/grad_norm", self.grad_norm)
        self.log_dict({f"train/{name}": result[name] for name in ("nll", "bpd", "ppl")})

    def num_tokens(self, batch: dict[str, Tensor], loss_mask: Tensor) -> Tensor:
        """What a micro-batch's summed loss is divided by: accumulation and devices then change nothing.

        With ``batch["num_tokens"]`` (0-d: tokens of the step's global batch / number of its micro-batches)
        the mean over micro-batches, which Lightning and DDP take, is that over the tokens of the global
        batch. Without it all rows are full, or nobody knows the other micro-batches: the own tokens count.

        Args:
            loss_mask: (B, L or less) bool, the tokens in the loss: those of ``attention_mask`` but for the
                same number in every row (ignore_bos; the first token of an autoregressive model).

        Returns:
            0-d, at least 1.
        """
        count = loss_mask.sum()
        if "num_tokens" in batch:
            count = batch["num_tokens"] - (batch["attention_mask"].sum() - count)
        return count.clamp(min=1)

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
        # Shards are gathered once for all batches and samples, of which devices need not have equally many.
        self._validation = contextlib.ExitStack()
        if isinstance(self.backbone, FSDPModule):
            self._validation.enter_context(self.ema_weights())
            self._validation.enter_context(gathered(self.backbone))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        with self.ema_weights():
            output = self.loss(batch, step=0, num_rows=self.num_valid_rows(), training=False)
        self.valid_nelbo.update(output.token_nll, output.loss_mask)

    def num_valid_rows(self) -> int:
        """Rows of the validation set, over which its noise levels are stratified."""
        return len(self.trainer.val_dataloaders.dataset)

    def on_validation_epoch_end(self) -> None:
        result = self.valid_nelbo.compute()
        self.log_dict({f"val/{name}": result[name] for name in ("nll", "bpd", "ppl")}, sync_dist=True)
        self._validation.close()  # callbacks have sampled before

    # Checkpoints ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        # Plain containers and tensors only: a checkpoint must be readable without running code from it.
        checkpoint["config"] = OmegaConf.to_container(self.config, resolve=True)
        names, sums = zip(*self.train_nelbo.metric_state.items(), strict=True)
        checkpoint["train_nelbo"] = dict(zip(names, self.over_devices(torch.stack(sums)).cpu(), strict=True))
        if self.ema is not None:
            checkpoint["ema"] = collected(self.ema.state_dict())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.ema is not None and "ema" in checkpoint:
            self.ema.load_state_dict(checkpoint["ema"])
        if self.global_rank == 0:  # the sums of all devices, to be counted once
            for name, value in checkpoint.get("train_nelbo", {}).items():
                getattr(self.train_nelbo, name).copy_(value)
