"""The autoregressive baseline: each token predicted from those before it, with an exact likelihood.

Shapes: B sequences, L positions, n ids, V vocabulary with the mask, which has no probability here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from algorithms.objective import Objective, num_tokens
from diffusion.backbone import Backbone
from diffusion.objectives import LossOutput
from diffusion.parameterization import Prediction
from errors import UserError
from settings import AlgorithmSettings, ForwardProfile, key


@dataclass
class ArSettings(AlgorithmSettings):
    """The autoregressive baseline: next-token prediction, exact likelihood."""

    name: str = key("ar", "the algorithm")

    family: ClassVar[str] = "autoregressive"
    default_predictor: ClassVar[str] = "autoregressive"
    causal: ClassVar[bool] = True
    exact_likelihood: ClassVar[bool] = True

    def profile(self) -> ForwardProfile:
        return ForwardProfile(everywhere=True)

    def warnings(self, run: Any) -> list[str]:
        usual = {
            "algo.time_conditioning": (run.algo.time_conditioning, False),
            "noise.name": (run.noise.name, "log-linear"),
            "training.antithetic_sampling": (run.training.antithetic_sampling, True),
            "training.ignore_bos": (run.training.ignore_bos, False),
            "training.loss_type": (run.training.loss_type, "nelbo"),
            "training.mask_sampling": (run.training.mask_sampling, "time"),
            "training.sampling_eps": (run.training.sampling_eps, 1e-3),
            "eval.nelbo": (run.eval.nelbo, "time"),
            "sampling.noise_removal": (run.sampling.noise_removal, "ancestral"),
            "sampling.fix_eps": (run.sampling.fix_eps, False),
            "sampling.mdlm_posterior": (run.sampling.mdlm_posterior, False),
        }
        idle = [f"{name}={value}" for name, (value, default) in usual.items() if value != default]
        if len(run.sampling.steps) > 1:
            idle.append(f"sampling.steps={','.join(map(str, run.sampling.steps))}")
        capped = run.model.softcap > 0
        found = [f"model.softcap={run.model.softcap:g} has no effect with algo=ar: causal blocks cap nothing"]
        found = found if capped else []
        if not idle:
            return found
        verb = "have" if len(idle) > 1 else "has"
        return [f"{', '.join(idle)} {verb} no effect with algo=ar: no noise, and one call a token", *found]


class AR(Objective):
    """Next-token prediction by a causal transformer without time (the AR baseline of MDLM, arXiv 2406.07524).

    Rows of data begin with bos, which is given and not predicted. Where the tokenizer has none
    (synthetic-align) the mask, an id that occurs in no text, stands in front of the text instead, and the
    first token is predicted as all others: a row of L tokens then has L predictions, else L - 1.
    """

    Settings: ClassVar[type[AlgorithmSettings]] = ArSettings

    # Likelihood -----------------------------------------------------------------------------------

    def next_token(self, backbone: Backbone, seen: Tensor) -> Prediction:
        """One distribution for each of the ids ``seen`` (B, n): at (b, i) that of the token behind
        seen[b, : i + 1].

        The network sees the ids as they are: ``with_start`` puts a start in front of those that need one.
        """
        return self.prediction(backbone, backbone.body(seen, None))

    def with_start(self, ids: Tensor) -> Tensor:
        """``ids`` (B, n) as the network sees them: behind the mask where there is no bos, (B, n + 1)."""
        if self.context.bos_id is not None:
            return ids
        return torch.cat((ids.new_full((len(ids), 1), self.mask_id), ids), 1)

    def prediction(self, backbone: Backbone, features: Tensor) -> Prediction:
        """What ``features`` (B, n, D) say of the next tokens; every position is open, none carried over."""
        nothing = torch.full(features.shape[:2], self.mask_id, dtype=torch.int64, device=features.device)
        head = backbone.head
        return Prediction(features, head.weight, head.bias, nothing, self.mask_id, dtype=self.context.dtype)

    def loss(
        self, backbone: Backbone, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool
    ) -> LossOutput:
        """The mean of -log p(token | those before it); nothing here is drawn, so ``step`` plays no part."""
        x0 = batch["input_ids"]
        seen = self.with_start(x0)[:, :-1]
        first = x0.shape[1] - seen.shape[1]
        loss_mask = batch["attention_mask"].clone()
        loss_mask[:, :first] = False
        prediction = self.next_token(backbone, seen)
        weight = num_tokens(batch, loss_mask).to(prediction.dtype).reciprocal()
        rows = loss_mask[:, first:].flatten().nonzero().squeeze(1)
        targets = x0[:, first:].flatten()[rows]
        loss, nll = prediction.weighted_nll(rows, targets, weight.expand(len(rows)))
        token_nll = torch.zeros(x0.shape, dtype=nll.dtype, device=x0.device).masked_scatter(loss_mask, nll)
        return LossOutput(loss, token_nll, loss_mask)

    @torch.no_grad()
    def token_log_probs(self, backbone: Backbone, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """How unlikely each token of a text is given those before it: to score the samples of other models.

        The head runs in chunks; no (B, L, V) tensor exists. Mode and weights are the caller's to choose:
        ``module.eval()``, and ``with module.ema_weights():`` for the averaged ones.

        Args:
            ids: (B, L) int64 of this model's own tokenizer, L >= 2. The first of a row is context alone: put
                bos there (``context.bos_id``), as in training. Beyond ``model.length`` positions come that it
                was not trained on.
            attention_mask: (B, L) bool or 0/1, 0 at padding, which stands on the right.

        Returns:
            Negative log-likelihoods in nats, (B, L - 1), float32 or better: entry j is
            -log p(ids[:, j + 1] | ids[:, : j + 1]), 0 where ids[:, j + 1] is padding.
        """
        predicted = attention_mask[:, 1:].bool()
        seen = self.with_start(ids)[:, :-1]
        where = torch.zeros_like(seen, dtype=torch.bool)
        where[:, seen.shape[1] - predicted.shape[1] :] = predicted  # behind a start: not the first token
        nll = self.next_token(backbone, seen).nll(where, ids[:, 1:][predicted])
        return torch.zeros(predicted.shape, dtype=nll.dtype, device=ids.device).masked_scatter(predicted, nll)

    # Sampling -------------------------------------------------------------------------------------

    def prior(self, xt: Tensor) -> Tensor:
        """Nothing is written yet but bos, where there is one."""
        if self.context.bos_id is not None:
            xt[:, 0] = self.context.bos_id
        return xt

    def decoder(self, backbone: Any, length: int) -> CachedDecoder:
        """Reads rows of ``length`` tokens piece by piece, and computes each position once."""
        return CachedDecoder(self, backbone, length)


class CachedDecoder:
    """An ``AR`` model that remembers keys and values of what it has read (``samplers.autoregressive``).

    Args:
        objective: reads the network's answer.
        backbone: a causal network with ``new_cache``, whose weights must not change while this is in use.
        length: of the rows that will be read.
    """

    def __init__(self, objective: AR, backbone: Any, length: int) -> None:
        self._objective, self._backbone = objective, backbone
        # A start in front takes the place of the last token, behind which nothing is predicted.
        self._cache = backbone.new_cache(length)

    @torch.no_grad()
    def read(self, ids: Tensor) -> Prediction:
        """The distribution of the token behind all ids read so far: a prediction of shape (B, 1).

        Args:
            ids: (B, n) int64, those that follow the ids read before; none only if the model has a start.

        Raises:
            UserError: no ids at the beginning, where the model needs bos.
        """
        if self._cache[0].length == 0:
            ids = self._objective.with_start(ids)
        if ids.shape[1] == 0:
            problem = "masked, but an autoregressive model starts from bos"
            raise UserError("xt", "position 0", problem, "put the tokenizer's bos there")
        features = self._backbone.body(ids, None, cache=self._cache)[:, -1:]
        return self._objective.prediction(self._backbone, features)
