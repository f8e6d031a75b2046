"""Coupled distillation: a student of few calls learns the text that a teacher's noise decides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from algorithms.mdlm import MDLM, TRAIN_STREAMS, Noised
from algorithms.objective import Context, num_tokens
from algorithms.pairs import EARLIEST, stored_pairs
from diffusion import NEG_INF
from diffusion.backbone import Backbone
from diffusion.coupled_prediction import CoupledPrediction, mask_inputs
from diffusion.coupling import Coupling
from diffusion.objectives import LossOutput
from diffusion.randomness import random_bits, row_keys, uniform
from samplers.spread import Plan
from settings import AlgorithmSettings, ForwardProfile, UserError, key

CALLS = (2, 4, 8)  # the students' numbers of calls whose states training shows
_UNIGRAM_LENGTH = 64  # positions of the masked text that the unigram distribution is read from


@dataclass
class ImCoupledSettings(AlgorithmSettings):
    """Coupled distillation on pairs whose noise decided every draw (docs/coupled.md)."""

    name: str = key("im-coupled", "the algorithm")
    ignore_seed: bool = key(False, "draw fresh noise instead of the pairs' own: the control without coupling")
    partial: float = key(0.5, "share of rows that a part of the text is given to", low=0, high=1)
    output_noise: bool = key(True, "a mask's own noise enters its scores exactly; False: at the input alone")
    proposal: bool = key(True, "the network sees the token that a mask's noise draws from the unigrams")

    needs_pairs: ClassVar[bool] = True
    needs_coupled_pairs: ClassVar[bool] = True
    default_predictor: ClassVar[str] = "coupled"

    def mask_noise(self) -> dict[str, Any] | None:
        return {"noise_type": "coupled"}

    def profile(self) -> ForwardProfile:
        return ForwardProfile(chunks=3)

    def validate(self, run: Any) -> None:
        if run.training.mask_sampling == "count":
            problem = "the pairs of algo=im-coupled carry their times"
            raise UserError("training.mask_sampling", "count", problem, "use training.mask_sampling=time")


class ImCoupled(MDLM):
    """A student whose masks carry the noise that decides their draw, as it decided the teacher's.

    Scores are log p + gain * the mask's own Gumbel noise, and their argmax is the token. Fresh from an MDLM
    (g and gain start at zero and one) a single call is that model's own one-call sampler, draw by draw; what
    is learned is how the noise of other masks moves log p, which is the dependence between positions. It
    trains on pairs that ``sampling.predictor=coupled`` made: half of the rows from pure masks, half with the
    text of the first of 2, 4 or 8 calls given. Validation is the NELBO of log p on text.
    """

    Settings: ClassVar[type[AlgorithmSettings]] = ImCoupledSettings

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self.coupling = Coupling.of(self.vocab_size)

    def mask_noise(self, noise_dim: int) -> dict[str, Any] | None:
        return {"noise_type": "coupled", "noise_dim": self.coupling.channels}

    def draw_seeds(self, keys: Tensor, length: int) -> Tensor | None:
        return random_bits(keys, length)

    def refresh_seeds(self, mask_seeds: Tensor | None, where: Tensor, keys: Tensor) -> Tensor | None:
        return (
            None
            if mask_seeds is None
            else torch.where(where, self.draw_seeds(keys, where.shape[1]), mask_seeds)
        )

    @torch.no_grad()
    def begin(self, backbone: Backbone) -> None:
        """Keep what the teacher's weights say of a fully masked text as the distribution of proposals."""
        unigram: Tensor = backbone.vocab_embed.coupled_unigram  # type: ignore[attr-defined]
        if bool(unigram.any()):  # a training that goes on
            return
        xt = torch.full((1, _UNIGRAM_LENGTH), self.mask_id, device=unigram.device)
        prediction = self.denoise(backbone, xt, unigram.new_zeros(1), torch.zeros_like(xt))
        unigram.copy_(prediction.full().exp().mean((0, 1)).log().clamp(min=NEG_INF))

    def denoise(
        self, backbone: Backbone, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None = None
    ) -> CoupledPrediction:
        if mask_seeds is None:
            raise UserError("mask_seeds", "None", "no noise for these masks", f"give {tuple(xt.shape)} seeds")
        inputs = mask_inputs(self.coupling, xt, self.mask_id, mask_seeds, self._proposal(backbone))
        features = backbone.body(xt, sigma if self.settings.time_conditioning else None, inputs)
        head = backbone.head
        learned = backbone.coupled_gain(features).squeeze(-1)  # type: ignore[attr-defined]
        gain = (1 + learned).clamp(min=0) if self.settings.output_noise else 0 * learned
        return CoupledPrediction(
            features,
            head.weight,
            head.bias,
            xt,
            self.mask_id,
            coupling=self.coupling,
            inputs=inputs,
            gain=gain,
            dtype=self.context.dtype,
        )

    def _proposal(self, backbone: Backbone) -> Tensor | None:
        if not self.settings.proposal:
            return None
        unigram: Tensor = backbone.vocab_embed.coupled_unigram  # type: ignore[attr-defined]
        mask = torch.tensor(self.mask_id, device=unigram.device)
        return unigram.index_fill(0, mask, NEG_INF)

    def loss(
        self, backbone: Backbone, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool
    ) -> LossOutput:
        if not training:
            return super().loss(backbone, batch, step=step, num_rows=num_rows, training=False)
        x0, xt, _, _, sigma, mask_seeds, loss_mask = self.noised(batch, step, num_rows, True)
        prediction = self.denoise(backbone, xt, sigma, mask_seeds)
        positions = ((xt == self.mask_id) & loss_mask).flatten().nonzero().squeeze(1)
        weight = torch.as_tensor(1 / num_tokens(batch, loss_mask), device=xt.device).expand(len(positions))
        loss, nll = prediction.weighted_score_nll(positions, x0.flatten()[positions], weight)
        token_nll = torch.zeros(xt.numel(), dtype=nll.dtype, device=nll.device)
        token_nll[positions] = nll
        return LossOutput(loss, token_nll.view(xt.shape), loss_mask)

    def noised(self, batch: dict[str, Tensor], step: int, num_rows: int, training: bool) -> Noised:
        """In training the stored pairs, a part of whose rows have the text of their first calls."""
        if not training:
            return super().noised(batch, step, num_rows, training)
        pair = stored_pairs(self, batch, self.pair_seeds(batch, step))
        time_keys = row_keys(self.context.seed, TRAIN_STREAMS[0], step, batch["row"])
        shown = self.shown(pair.xt == self.mask_id, uniform(time_keys, 3))
        xt = torch.where(shown, pair.x0, pair.xt)
        left = (xt == self.mask_id).sum(-1) / (pair.xt == self.mask_id).sum(-1).clamp(min=1).double()
        t = self.schedule.inverse(1 - left * self.schedule.masked(pair.t)).clamp(min=EARLIEST, max=1)
        return pair._replace(xt=xt, t=t, weight=self.schedule.weight(t), sigma=self.schedule.sigma(t))

    def shown(self, is_masked: Tensor, uniforms: Tensor) -> Tensor:
        """Which masks (B, L) bool the text is given of: those of the first calls, in spread order.

        Args:
            is_masked: (B, L) bool.
            uniforms: (B, 3) in [0, 1): whether, the number of calls, and how many of them are over.
        """
        choice = (uniforms[:, 1] * len(CALLS)).long()
        plans = torch.stack([Plan.make(is_masked, calls).call for calls in CALLS])
        call = plans[choice, torch.arange(len(is_masked), device=is_masked.device)]
        number = torch.tensor(CALLS, device=is_masked.device)[choice]
        over = 1 + (uniforms[:, 2] * (number - 1)).long()
        over = torch.where(uniforms[:, 0] < self.settings.partial, over, 0)
        return is_masked & (call < over.unsqueeze(-1))

    def pair_seeds(self, batch: dict[str, Tensor], step: int) -> Tensor:
        """The seed of every position, (B, L): the pair's own, or fresh ones."""
        length = batch["input_ids"].shape[1]
        if self.settings.ignore_seed or "seed" not in batch:
            return random_bits(row_keys(self.context.seed, TRAIN_STREAMS[2], step, batch["row"]), length)
        return batch["seed"].unsqueeze(-1).expand(-1, length)
