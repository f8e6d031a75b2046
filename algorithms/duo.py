"""Duo: uniform-state diffusion, in which every token may change until the end, and its curriculum."""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from algorithms.mdlm import MDLM
from diffusion.duality import Argmax, Relaxed, argmax_law, discrete_level, relaxed_embedding
from diffusion.largest import default_top_k, top_k_embedding
from diffusion.objectives import LossOutput
from diffusion.randomness import Stream, row_keys, uniform
from diffusion.uniform import Uniform, UniformPrediction, uniform_nelbo
from integral.table import Table, read_table


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

    def read(self, features: Tensor, head: nn.Linear, xt: Tensor, sigma: Tensor) -> UniformPrediction:
        return UniformPrediction(features, head.weight, head.bias, xt, dtype=self.loss_dtype)

    def loss(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> LossOutput:
        x0, xt, _, weight, sigma, cond, loss_mask = self.noised(batch, step, num_rows, training)
        return uniform_nelbo(
            self.denoise(xt, sigma, cond), x0, weight, sigma, loss_mask, self.num_tokens(batch, loss_mask)
        )


class GaussianDuo(DUO_BASE):
    """A ``DUO_BASE`` whose training noise is argmax(w) of a Gaussian w, at gammas linear in t.

    P(gamma) comes from the table ``algo.integral_cache_path``, or is computed, which costs next to nothing.
    """

    @cached_property
    def table(self) -> Table | None:
        """The table of P, read at its first use; None: there is none."""
        algo = self.config.algo
        if not algo.integral_cache_path:
            return None
        return read_table(algo.integral_cache_path, self.vocab_size, (algo.gamma_min, algo.gamma_max))

    @property
    def speed(self) -> float:
        """d gamma / dt."""
        return self.config.algo.gamma_max - self.config.algo.gamma_min

    def argmax_law(self, t: Tensor) -> Argmax:
        """The law of argmax(w) at diffusion times t (B,), float64."""
        gamma = self.gamma(t)
        return argmax_law(gamma, self.vocab_size) if self.table is None else self.table.law(gamma)

    def gamma(self, t: Tensor) -> Tensor:
        """Log of noise over signal at diffusion times t (B,)."""
        return self.config.algo.gamma_min + self.speed * t

    def on_fit_start(self) -> None:
        super().on_fit_start()
        _ = self.table  # a wrong one is told before training begins


class DUO(GaussianDuo):
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

    @property
    def top_k(self) -> int:
        """How many entries of w are drawn beside that of x0; 0: all, which is exact."""
        chosen = self.config.algo.curriculum_top_k
        wanted = default_top_k(self.vocab_size) if chosen is None else chosen
        return wanted if wanted < self.vocab_size - 1 else 0

    def relaxed(self, relaxed: Relaxed) -> tuple[Tensor, Tensor]:
        """softmax(w / tau) times the embeddings, (N, D), and argmax(w), (N,)."""
        embedding = self.backbone.embedding
        if self.top_k == 0:
            return relaxed_embedding(embedding, relaxed)
        return top_k_embedding(embedding, relaxed, self.top_k)

    def loss(self, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool) -> LossOutput:
        if not training or step >= self.config.algo.curriculum_end:
            return super().loss(batch, step=step, num_rows=num_rows, training=training)
        x0, rows = batch["input_ids"], batch["row"]
        time_keys, noise_keys = (
            row_keys(self.config.seed, s, step, rows) for s in (Stream.TRAIN_TIME, Stream.TRAIN_MASK)
        )
        t = self.times(time_keys, rows, num_rows, training)
        weight, sigma = discrete_level(self.argmax_law(t), self.speed, self.vocab_size)
        embedded, xt = self.relaxed(Relaxed.of(x0, self.gamma(t), noise_keys, self.tau(step)))
        embedded, xt, loss_mask = embedded.view(*x0.shape, -1), xt.view_as(x0), batch["attention_mask"]
        if self.config.training.ignore_bos:
            is_first = torch.arange(x0.shape[1], device=x0.device) == 0
            xt, loss_mask = torch.where(is_first, x0, xt), loss_mask & ~is_first
            clean = self.backbone.embedding[x0]
            embedded = torch.where(is_first.unsqueeze(-1), clean, embedded)
        seen = sigma if self.config.algo.time_conditioning else None
        features = self.backbone.body(xt, seen, embedded=embedded)
        prediction = self.read(features, self.backbone.head, xt, sigma)
        return uniform_nelbo(prediction, x0, weight, sigma, loss_mask, self.num_tokens(batch, loss_mask))
