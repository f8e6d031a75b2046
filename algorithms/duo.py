"""Duo: uniform-state diffusion, in which every token may change until the end, and its curriculum."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from algorithms.mdlm import MDLM
from algorithms.objective import Context, num_tokens
from diffusion.backbone import Backbone
from diffusion.duality import Argmax, Relaxed, argmax_distribution, discrete_level, relaxed_embedding
from diffusion.largest import default_top_k, top_k_embedding
from diffusion.objectives import LossOutput
from diffusion.randomness import Stream, row_keys, uniform
from diffusion.uniform import Uniform, UniformPrediction, uniform_nelbo
from integral.polynomial import LevelPolynomial
from integral.table import Table, read_table
from settings import AlgorithmSettings, ForwardProfile, UserError, key


@dataclass
class DuoBaseSettings(AlgorithmSettings):
    """Uniform-state diffusion (Sahoo et al., 2025, arXiv 2506.10892)."""

    name: str = key("duo_base", "the algorithm")
    time_conditioning: bool = key(True, "let the network see the noise level")

    family: ClassVar[str] = "uniform"

    def profile(self) -> ForwardProfile:
        return ForwardProfile(everywhere=True, chunks=3)

    def validate(self, run: Any) -> None:
        problem = f"is about masks, of which algo={self.name} has none"
        if run.training.loss_type == "low_var":
            raise UserError("training.loss_type", "low_var", problem, "use training.loss_type=nelbo")
        if run.training.mask_sampling == "count":
            raise UserError("training.mask_sampling", "count", problem, "use training.mask_sampling=time")
        if run.eval.nelbo == "count":
            raise UserError("eval.nelbo", "count", problem, "use eval.nelbo=time")

    def warnings(self, run: Any) -> list[str]:
        for name in ("fix_eps", "mdlm_posterior"):
            if run.sampling[name]:
                return [f"sampling.{name}=True has no effect with algo={self.name}, which has no masks"]
        return []


@dataclass
class GaussianDuoSettings(DuoBaseSettings):
    """A uniform-state model whose training noise is the largest entry of a Gaussian."""

    name: str = key("", "the algorithm")
    gamma_min: float = key(-5.0, "log of noise over signal at t = 0", low=-30, high=30)
    gamma_max: float = key(-1.0, "the same at t = 1", low=-30, high=30)
    integral_cache_path: str | None = key(
        None,
        "table of P(gamma), made by python -m integral; null: computed",
        path=True,
        example="integral/50258.npz",
    )

    def validate(self, run: Any) -> None:
        DuoBaseSettings.validate(self, run)
        path = self.integral_cache_path
        if path and path.lower().endswith((".pkl", ".pickle", ".pt", ".pth")):
            problem = "a pickle, which may run code when it is read"
            hint = "leave it out (P is then computed), or give the npz of python -m integral --vocab_size ..."
            raise UserError("algo.integral_cache_path", path, problem, hint)
        if self.gamma_min >= self.gamma_max:
            problem, hint = (
                f"not below algo.gamma_max={self.gamma_max}",
                "give algo.gamma_min < algo.gamma_max",
            )
            raise UserError("algo.gamma_min", self.gamma_min, problem, hint)


@dataclass
class DuoSettings(GaussianDuoSettings):
    """Uniform-state diffusion after a curriculum of Gaussian noise seen through a softmax (Duo)."""

    name: str = key("duo", "the algorithm")
    gamma_min: float = key(
        -3.5, "log of noise over signal at t = 0, while the curriculum lasts", low=-30, high=30
    )
    gamma_max: float = key(-1.75, "the same at t = 1", low=-30, high=30)
    gumbel_tau_log10_start: float = key(
        -1.0, "log10 of the softmax's temperature at curriculum_start", low=-30, high=30
    )
    gumbel_tau_log10_end: float = key(-2.0, "the same at curriculum_end", low=-30, high=30)
    curriculum_start: int = key(100_000, "optimizer steps until the temperature begins to move", low=0)
    curriculum_end: int = key(200_000, "optimizer steps until the plain uniform noise", low=0)
    curriculum_mode: str = key(
        "simple",
        "alpha of the noise that is seen: exact, or a polynomial in t of degree 3 to 9 (Duo++)",
        choices=("simple", "poly3", "poly5", "poly7", "poly9"),
    )
    curriculum_top_k: int | None = key(
        None,
        "largest entries of the softmax that are drawn, the rest counts in its mean; 0: all; null: 64 of a "
        "vocabulary above 1024",
        low=0,
        auto=True,
        example=64,
    )

    def validate(self, run: Any) -> None:
        GaussianDuoSettings.validate(self, run)
        if self.curriculum_end < self.curriculum_start:
            problem = f"before algo.curriculum_start={self.curriculum_start}"
            raise UserError("algo.curriculum_end", self.curriculum_end, problem, "give a later one")


class DUO_BASE(MDLM):
    """Uniform-state diffusion with the Rao-Blackwellised NELBO of Duo (Sahoo et al., 2025, arXiv 2506.10892).

    Times and their strata are MDLM's. V is ``len(tokenizer)``, as in the published weights, and no id is a
    mask: ``mask_id`` only marks, in what is given to a sampler, the positions that are to be written.
    """

    Settings: ClassVar[type[AlgorithmSettings]] = DuoBaseSettings

    def __init__(self, settings: Any, context: Context) -> None:
        super().__init__(settings, context)
        self.process = Uniform(self.vocab_size)

    def start(self, xt: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Uniform ids where tokens are to be written; see ``Objective.start``."""
        fixed = xt != self.mask_id
        return torch.where(fixed, xt, self.process.prior(uniform(keys, xt.shape[1]))), fixed

    def read(self, features: Tensor, head: Any, xt: Tensor, sigma: Tensor) -> UniformPrediction:
        return UniformPrediction(features, head.weight, head.bias, xt, dtype=self.context.dtype)

    def loss(
        self, backbone: Backbone, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool
    ) -> LossOutput:
        x0, xt, _, weight, sigma, mask_seeds, loss_mask = self.noised(batch, step, num_rows, training)
        prediction = self.denoise(backbone, xt, sigma, mask_seeds)
        return uniform_nelbo(prediction, x0, weight, sigma, loss_mask, num_tokens(batch, loss_mask))


class GaussianDuo(DUO_BASE):
    """A ``DUO_BASE`` whose training noise is argmax(w) of a Gaussian w, at gammas linear in t.

    P(gamma) comes from the table ``algo.integral_cache_path``, or is computed, which costs next to nothing.
    """

    Settings: ClassVar[type[AlgorithmSettings]] = GaussianDuoSettings

    @cached_property
    def table(self) -> Table | None:
        """The table of P, read at its first use; None: there is none."""
        own = self.settings
        if not own.integral_cache_path:
            return None
        return read_table(own.integral_cache_path, self.vocab_size, (own.gamma_min, own.gamma_max))

    @property
    def speed(self) -> float:
        """d gamma / dt."""
        return self.settings.gamma_max - self.settings.gamma_min

    def argmax_distribution(self, t: Tensor) -> Argmax:
        """The distribution of argmax(w) at diffusion times t (B,), float64."""
        gamma = self.gamma(t)
        return (
            argmax_distribution(gamma, self.vocab_size)
            if self.table is None
            else self.table.distribution(gamma)
        )

    def gamma(self, t: Tensor) -> Tensor:
        """Log of noise over signal at diffusion times t (B,)."""
        return self.settings.gamma_min + self.speed * t

    def prepare(self) -> None:
        _ = self.table  # a wrong one is reported before training begins


class DUO(GaussianDuo):
    """``DUO_BASE`` after a curriculum that lets the network see Gaussian noise through a softmax.

    Until ``algo.curriculum_end`` the noise of training is w = a onehot(x0) + s N(0, I) at a gamma that is
    linear in t; the input is softmax(w / tau), the loss the NELBO at argmax(w), which is uniform noise (see
    ``diffusion.duality``). With ``algo.curriculum_mode`` other than simple the level of that noise is taken
    from a polynomial (``integral.polynomial``, Duo++). Then training is that of ``DUO_BASE``, as validation
    always is.
    """

    Settings: ClassVar[type[AlgorithmSettings]] = DuoSettings

    @cached_property
    def polynomial(self) -> LevelPolynomial | None:
        """What stands for P, made at its first use; None: nothing does."""
        own = self.settings
        if own.curriculum_mode == "simple":
            return None
        return LevelPolynomial.of(self.vocab_size, own.gamma_min, own.gamma_max, own.curriculum_mode)

    def argmax_distribution(self, t: Tensor) -> Argmax:
        return super().argmax_distribution(t) if self.polynomial is None else self.polynomial.at(t)

    def prepare(self) -> None:
        super().prepare()
        _ = self.polynomial

    def tau(self, step: int) -> float:
        """The temperature after ``step`` optimizer steps, before the curriculum's end."""
        own = self.settings
        length = max(1, own.curriculum_end - own.curriculum_start)
        part = min(1.0, max(0.0, (step - own.curriculum_start) / length))
        log_tau = own.gumbel_tau_log10_start
        return 10 ** (log_tau + part * (own.gumbel_tau_log10_end - log_tau))

    @property
    def top_k(self) -> int:
        """How many entries of w are drawn beside that of x0; 0: all, which is exact."""
        chosen = self.settings.curriculum_top_k
        wanted = default_top_k(self.vocab_size) if chosen is None else chosen
        return wanted if wanted < self.vocab_size - 1 else 0

    def relaxed(self, embedding: Tensor, relaxed: Relaxed) -> tuple[Tensor, Tensor]:
        """softmax(w / tau) times the embeddings (V, D), (N, D), and argmax(w), (N,)."""
        if self.top_k == 0:
            return relaxed_embedding(embedding, relaxed)
        return top_k_embedding(embedding, relaxed, self.top_k)

    def loss(
        self, backbone: Backbone, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool
    ) -> LossOutput:
        if not training or step >= self.settings.curriculum_end:
            return super().loss(backbone, batch, step=step, num_rows=num_rows, training=training)
        x0, rows = batch["input_ids"], batch["row"]
        streams = (Stream.TRAIN_TIME, Stream.TRAIN_MASK)
        time_keys, noise_keys = (row_keys(self.context.seed, s, step, rows) for s in streams)
        t = self.times(time_keys, rows, num_rows, training)
        weight, sigma = discrete_level(self.argmax_distribution(t), self.speed, self.vocab_size)
        embedding = backbone.embedding
        embedded, xt = self.relaxed(embedding, Relaxed.of(x0, self.gamma(t), noise_keys, self.tau(step)))
        embedded, xt, loss_mask = embedded.view(*x0.shape, -1), xt.view_as(x0), batch["attention_mask"]
        if self.context.ignore_bos:
            is_first = torch.arange(x0.shape[1], device=x0.device) == 0
            xt, loss_mask = torch.where(is_first, x0, xt), loss_mask & ~is_first
            embedded = torch.where(is_first.unsqueeze(-1), embedding[x0], embedded)
        seen = sigma if self.settings.time_conditioning else None
        features = backbone.body(xt, seen, embedded=embedded)
        prediction = self.read(features, backbone.head, xt, sigma)
        return uniform_nelbo(prediction, x0, weight, sigma, loss_mask, num_tokens(batch, loss_mask))
