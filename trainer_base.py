"""What every algorithm shares: backbone, EMA, optimizer, hooks, sampling. No mathematics lives here.

Shapes: B sequences of a micro-batch, L positions, V vocabulary with the mask.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import lightning as L
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.tokenizers import mask_id_of
from diffusion.noise import get_schedule
from diffusion.objectives import LossOutput
from diffusion.parameterization import Prediction
from diffusion.process import Absorbing
from diffusion.randomness import Stream, fold_in, row_keys
from metrics import Nelbo
from models.dit import BackboneConfig, DiT, MaskNoiseConfig
from models.ema import ExponentialMovingAverage
from models.precision import Precision
from samplers.base import Sampler, SamplerSettings, Samples
from samplers.draws import KeyedDraws
from samplers.registry import get_sampler
from schedulers import lr_multiplier
from utils import user_error


class TrainerBase(L.LightningModule):
    """An algorithm for Lightning: subclasses say what the loss, the denoiser and the mask noise are.

    Args:
        config: the composed configuration (config/schema.py).
        tokenizer: gives the vocabulary size and the mask id.
    """

    default_predictor: ClassVar[str] = "ancestral_cache"
    family: ClassVar[str] = "absorbing"  # which samplers make sense (Sampler.families)

    def __init__(self, config: DictConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__()
        self.config = config
        self.tokenizer = tokenizer
        self.mask_id, self.vocab_size = mask_id_of(tokenizer)
        self.process = Absorbing(self.mask_id)
        self.schedule = get_schedule(config.noise.name, config.noise.eps)
        self.sampler_class = get_sampler(config.sampling.predictor or self.default_predictor, self.family)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.backbone = DiT(self.backbone_config())
        self.backbone.precision = Precision.resolve(config.trainer.precision, config.trainer.accelerator)
        self.ema = self._make_ema()
        self.train_nelbo, self.valid_nelbo = Nelbo(), Nelbo()

    # What an algorithm says of itself -------------------------------------------------------------

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

    # Construction ---------------------------------------------------------------------------------

    def backbone_config(self) -> BackboneConfig:
        """The network's hyper-parameters as the configuration and the tokenizer give them."""
        model = self.config.model
        return BackboneConfig(
            vocab_size=self.vocab_size,
            mask_id=self.mask_id,
            hidden_size=model.hidden_size,
            cond_dim=model.cond_dim,
            n_blocks=model.n_blocks,
            n_heads=model.n_heads,
            length=model.length,
            dropout=model.dropout,
            softcap=model.softcap,
            qk_norm=model.qk_norm,
            causal=False,
            mask_noise=self.mask_noise_config(),
        )

    def _make_ema(self) -> ExponentialMovingAverage | None:
        decay = self.config.training.ema
        return ExponentialMovingAverage(self._trainable(), decay) if decay > 0 else None

    def _trainable(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, p) for name, p in self.named_parameters() if p.requires_grad]

    @property
    def uses_ema(self) -> bool:
        """Whether evaluation is with the averaged weights."""
        return self.ema is not None and not self.config.eval.disable_ema

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Evaluate with the averaged weights inside the block (the raw ones when EMA is off)."""
        with self.ema.applied(self) if self.uses_ema else contextlib.nullcontext():
            yield

    # Optimisation ---------------------------------------------------------------------------------

    def configure_optimizers(self) -> dict[str, Any]:
        optim = self.config.optim
        optimizer = torch.optim.AdamW(
            [p for _, p in self._trainable()],
            lr=optim.lr,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            fused=True,
        )
        multiplier = lr_multiplier(
            OmegaConf.to_container(self.config.lr_scheduler), optim.lr, self.config.trainer.max_steps
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, multiplier)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.update()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self._seed_dropout(batch_idx)
        output = self.loss(
            batch, step=self.global_step, num_rows=self.config.loader.global_batch_size, training=True
        )
        self.train_nelbo.update(output.token_nll, output.loss_mask)
        if (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0 and self._logs_this_step():
            self._log_training(output.loss.detach())
        return output.loss

    def _logs_this_step(self) -> bool:
        return (self.global_step + 1) % self.trainer.log_every_n_steps == 0

    def _log_training(self, loss: Tensor) -> None:
        if not torch.isfinite(loss):
            raise user_error(
                "trainer/loss",
                float(loss),
                f"not a finite number at step {self.global_step}",
                "the last checkpoint is intact; lower optim.lr, clip gradients, or resume from it",
            )
        # The NELBO of all batches since the last line of the log, not of this one alone.
        result = self.train_nelbo.compute()
        self.train_nelbo.reset()
        self.log("trainer/loss", loss, sync_dist=True)
        self.log_dict({f"train/{name}": result[name] for name in ("nll", "bpd", "ppl")})

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self._logs_this_step():
            grads = [p.grad for _, p in self._trainable() if p.grad is not None]
            self.log("train/grad_norm", torch.nn.utils.get_total_norm(grads))

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

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        with self.ema_weights():
            output = self.loss(batch, step=0, num_rows=self.num_valid_rows(), training=False)
        self.valid_nelbo.update(output.token_nll, output.loss_mask)

    def num_valid_rows(self) -> int:
        """Rows of the validation set, over which its noise levels are stratified."""
        return len(self.trainer.val_dataloaders.dataset)

    def on_validation_epoch_end(self) -> None:
        result = self.valid_nelbo.compute()
        self.log_dict({f"val/{name}": result[name] for name in ("nll", "bpd", "ppl")}, rank_zero_only=False)

    # Sampling -------------------------------------------------------------------------------------

    def step_counts(self) -> list[int]:
        """The numbers of steps to sample at; a sampler without a time grid makes the same samples at each."""
        sampling = self.config.sampling
        return list(sampling.steps) if self.sampler_class.on_grid else [self.config.model.length]

    def sampler_settings(self, num_steps: int) -> SamplerSettings:
        """``sampling.*`` as the samplers read it."""
        sampling = self.config.sampling
        return SamplerSettings(
            num_steps=num_steps,
            noise_removal=sampling.noise_removal,
            temperature=sampling.temperature,
            p_nucleus=sampling.p_nucleus if sampling.use_p_nucleus else 1.0,
            reset=not (sampling.fix_eps or sampling.mdlm_posterior),
        )

    def make_sampler(self, num_steps: int) -> Sampler:
        """The sampler of ``sampling.predictor`` over this model."""
        return self.sampler_class(self, self.schedule, self.mask_id, self.sampler_settings(num_steps))

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        num_steps: int,
        *,
        first_row: int = 0,
        batch_size: int = 64,
        on_step: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> Samples:
        """Write ``num_samples`` sequences of ``model.length`` tokens from the fully masked state.

        Row r of the result is a function of (seed, first_row + r) alone: neither the batch size nor the
        device count changes it (up to the rounding of the network).
        """
        parts = []
        for start in range(0, num_samples, batch_size):
            rows = torch.arange(start, min(start + batch_size, num_samples), device=self.device) + first_row
            keys = row_keys(self.config.seed, Stream.SAMPLE, 0, rows)
            cond = self.draw_cond(fold_in(keys, int(Stream.SAMPLE_START)), self.config.model.length)
            parts.append(self.reverse(self.prior(len(rows)), 1.0, cond, keys, num_steps, on_step=on_step))
        return Samples.concatenate(parts)

    def prior(self, num_rows: int) -> Tensor:
        """The state that sampling starts from: ids (num_rows, model.length)."""
        return self.process.prior((num_rows, self.config.model.length), self.device)

    @torch.no_grad()
    def reverse(
        self,
        xt: Tensor,
        t: Tensor | float,
        cond: Tensor | None,
        keys: Tensor,
        num_steps: int,
        *,
        on_step: Callable[[int, Tensor, Tensor], None] | None = None,
    ) -> Samples:
        """Run the reverse process from any state.

        Args:
            xt: (B, L) ids; what is not masked stays.
            t: start times in (0, 1], one for all or (B,); the time grid is scaled by them.
            cond: mask noise seeds of ``xt`` (B, L), or None.
            keys: (B,) int64, one per row: they key all draws.
            num_steps: of samplers that walk on a time grid.
            on_step: see ``Sampler.sample``.
        """
        was_training = self.training
        self.eval()
        try:
            return self.make_sampler(num_steps).sample(xt, t, cond, KeyedDraws(keys), on_step=on_step)
        finally:
            self.train(was_training)

    # Checkpoints ----------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Plain containers and tensors only: a checkpoint must be readable without running code from it.
        checkpoint["config"] = OmegaConf.to_container(self.config, resolve=True)
        checkpoint["train_nelbo"] = self.train_nelbo.metric_state
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.ema is not None and "ema" in checkpoint:
            self.ema.load_state_dict(checkpoint["ema"])
        for name, value in checkpoint.get("train_nelbo", {}).items():
            getattr(self.train_nelbo, name).copy_(value)
