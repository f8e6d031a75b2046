"""Duo: uniform-state diffusion, in which every token may change until the end, and its curriculum."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from algorithms.mdlm import MDLM
from diffusion.duality import Relaxed, discrete_level, relaxed_embedding
from diffusion.objectives import LossOutput
from diffusion.randomness import Stream, row_keys, uniform
from diffusion.uniform import Uniform, UniformPrediction, uniform_nelbo
from models.dit import DiT


class DUO_BASE(MDLM):
    """Uniform-state diffusion with the Rao-Blackwellised NELBO of Duo (Sahoo et al., 2025, arXiv 2506.10892).

    Times and their strata are MDLM's. V is ``len(tokenizer)``, as in the published weights, and no id is a
    mask: ``mask_id`` only marks, in what is given to ``sample``, the positions that are to be written.
    """

    family: ClassVar[str] = "uniform"

    def vocabulary(self) -> tuple[int, int]:
        mask_id, _ = super().vocabulary()
        return mask_id, len(self.tokenizer)

    def forward_process(self) -> Uniform:
        return Uniform(self.vocab_size)

    def start(self, xt: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform ids where tokens are to be written; see ``GeneratingModule.start``."""
        fixed = xt != self.mask_id
        return torch.where(fixed, xt, self.process.prior(uniform(keys, xt.shape[1]))), fixed

    def denoise_by(self, backbone: DiT, xt: Tensor, sigma: Tensor, cond: Tensor | None) -> UniformPrediction:
        features = backbone.body(xt, sigma if self.config.algo.time_conditioning else None, cond)
        head = backbone.head
        return UniformPrediction(features, head.weight, head.bias, xt, dtype=self.loss_dtype)

    def loss(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> LossOutput:
        x0, xt, weight, sigma, cond, loss_mask = self.noised(batch, step, num_rows, training)
        return uniform_nelbo(
            self.denoise(xt, sigma, cond), x0, weight, sigma, loss_mask, self.num_tokens(batch, loss_mask)
        )


class DUO(DUO_BASE):
    """``DUO_BASE`` after a curriculum that lets the network see Gaussian noise through a softmax.

    Until ``algo.curriculum_end`` the noise of training is w = a onehot(x0) + s N(0, I) at a gamma that is
    linear in t; the input is softmax(w / tau), the loss the NELBO at argmax(w), which is uniform noise (see
    ``diffusion.duality``). Then training is that of ``DUO_BASE``, as validation always is.
    """

    def tau(self, step: int) -> float:
        """The temperature after ``step`` optimizer steps, before the curriculum's end."""
        algo = self.config.algo
        length = max(1, algo.curriculum_end - algo.curriculum_start)
        part = min(1.0, max(0.0, (step - algo.curriculum_start) / length))
        log_tau = algo.gumbel_tau_log10_start
        return 10 ** (log_tau + part * (algo.gumbel_tau_log10_end - log_tau))

    def loss(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> LossOutput:
        if not training or step >= self.config.algo.curriculum_end:
            return super().loss(batch, step=step, num_rows=num_rows, training=training)
        algo, x0, rows = self.config.algo, batch["input_ids"], batch["row"]
        time_keys, noise_keys = (
            row_keys(self.config.seed, s, step, rows) for s in (Stream.TRAIN_TIME, Stream.TRAIN_MASK)
        )
        speed = algo.gamma_max - algo.gamma_min
        gamma = algo.gamma_min + speed * self.times(time_keys, rows, num_rows, training)
        weight, sigma = discrete_level(gamma, speed, self.vocab_size)

        embedding = self.backbone.vocab_embed.embedding
        embedded, xt = relaxed_embedding(embedding, Relaxed.of(x0, gamma, noise_keys, self.tau(step)))
        embedded, xt, loss_mask = embedded.view(*x0.shape, -1), xt.view_as(x0), batch["attention_mask"]
        if self.config.training.ignore_bos:
            is_first = torch.arange(x0.shape[1], device=x0.device) == 0
            xt, loss_mask = torch.where(is_first, x0, xt), loss_mask & ~is_first
            embedded = torch.where(is_first.unsqueeze(-1), embedding[x0], embedded)
        features = self.backbone.body(xt, sigma if algo.time_conditioning else None, embedded=embedded)
        head = self.backbone.head
        prediction = UniformPrediction(features, head.weight, head.bias, xt, dtype=self.loss_dtype)
        return uniform_nelbo(prediction, x0, weight, sigma, loss_mask, self.num_tokens(batch, loss_mask))
