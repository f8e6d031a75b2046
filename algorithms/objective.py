"""What every objective shares: what it knows of its run, and how it meets a backbone. Torch only.

An objective is a loss, a way to read the network's answer, and the random state of masks. It owns no network:
any backbone that follows the protocol of ``diffusion.backbone`` is handed to it.
Shapes: B sequences of a micro-batch, L positions, V vocabulary with the mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from diffusion.backbone import Backbone
from diffusion.noise import LogLinear, Schedule
from diffusion.objectives import LossOutput
from diffusion.parameterization import Prediction
from settings import AlgorithmSettings

S = TypeVar("S", bound=AlgorithmSettings)


@dataclass(frozen=True)
class Context:
    """What an objective knows of its run beside its own settings.

    Attributes:
        vocab_size: V, the mask included.
        mask_id: the id that stands where nothing is written yet.
        bos_id: what every row begins with; None where the tokenizer has none (autoregressive models).
        schedule: alpha(t).
        seed: keys all draws, together with the optimizer step and the global row.
        sampling_eps: smallest diffusion time of training.
        antithetic: the times of a step are stratified over the global batch.
        ignore_bos: the first token is never masked, and not in the loss.
        low_variance: all weights of the training loss are 1 (``training.loss_type=low_var``).
        train_by_count, valid_by_count: noise is a number of masks instead of a time.
        dtype: of log-probabilities and losses, float32 or float64.
        max_steps, log_every: optimizer steps of the training, and between lines of its log.
    """

    vocab_size: int
    mask_id: int
    bos_id: int | None = None
    schedule: Schedule = field(default_factory=LogLinear)
    seed: int = 1
    sampling_eps: float = 1e-3
    antithetic: bool = True
    ignore_bos: bool = False
    low_variance: bool = False
    train_by_count: bool = False
    valid_by_count: bool = False
    dtype: torch.dtype = torch.float32
    max_steps: int = 1_000_000
    log_every: int = 100


class Stage(NamedTuple):
    """How far a distillation in rounds is: the round, from 0, and the optimizer steps made."""

    round: int
    step: int


class Promotion(NamedTuple):
    """How a student becomes the teacher.

    Attributes:
        from_ema: the teacher gets the student's averaged weights instead of the raw ones.
        replaces_student: the student goes on from what the teacher got, and averaging starts again.
        resets_optimizer: the optimizer forgets its moments.
    """

    from_ema: bool = False
    replaces_student: bool = False
    resets_optimizer: bool = False


class Distilled(NamedTuple):
    """A student against its teacher: the loss with the student's own NELBO as ``token_nll``, the divergences
    (B, L), 0 where there is none, and the positions (B, L) bool that have one."""

    output: LossOutput
    divergence: Tensor
    where: Tensor


class Objective(Generic[S]):
    """The base of all algorithms.

    Args:
        settings: ``algo.*``; None: all defaults.
        context: the vocabulary, the schedule, and how losses are drawn.
    """

    Settings: ClassVar[type[AlgorithmSettings]]
    settings: S

    def __init__(self, settings: S | None, context: Context) -> None:
        self.settings = self.Settings() if settings is None else settings  # type: ignore[assignment]
        for one in fields(
            self.settings
        ):  # what refers to other keys of a configuration is left open without one
            if str(getattr(self.settings, one.name)).startswith("${"):
                setattr(self.settings, one.name, None)
        self.context = context
        self.schedule = context.schedule
        self.mask_id, self.vocab_size = context.mask_id, context.vocab_size

    # The network's answer -------------------------------------------------------------------------

    def denoise(
        self, backbone: Backbone, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None = None
    ) -> Prediction:
        """Run the body of ``backbone`` on ids xt (B, L) at total noise sigma (B,).

        Args:
            mask_seeds: the masks' random state, see ``draw_seeds``; None without.

        Returns:
            A prediction that runs the head where somebody asks.
        """
        raise NotImplementedError

    def draw_seeds(self, keys: Tensor, length: int) -> Tensor | None:
        """The seed of every position's mask noise (B, L) int64, from row keys (B,); None: a plain mask."""
        return None

    def refresh_seeds(self, mask_seeds: Tensor | None, where: Tensor, keys: Tensor) -> Tensor | None:
        """``mask_seeds`` with fresh draws at the positions ``where`` (B, L)."""
        return mask_seeds

    # Training -------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Read what training needs, before it begins.

        Raises:
            UserError: it cannot be read.
        """

    def begin(self, backbone: Backbone) -> None:
        """Take from the weights that a training begins with what the objective needs of them."""

    def mask_noise(self, noise_dim: int) -> dict[str, Any] | None:
        """Fields of ``models.embeddings.MaskNoiseConfig``; None for a single plain mask.

        Args:
            noise_dim: the channels of the noise that the user chose.
        """
        noise = self.settings.mask_noise()
        return None if noise is None else {**noise, "noise_dim": noise_dim}

    def loss(
        self, backbone: Backbone, batch: dict[str, Tensor], *, step: int, num_rows: int, training: bool
    ) -> LossOutput:
        """The loss of a micro-batch.

        Args:
            batch: ``input_ids`` (B, L) int64, ``attention_mask`` (B, L) bool, and ``row`` (B,) int64, each
                sequence's number among the ``num_rows`` of the optimizer step (or of the validation set).
            step: the optimizer step, from 0; with the seed and the rows it keys all draws.
        """
        raise NotImplementedError

    def finished(self, step: int) -> str | None:
        """Why training is over after ``step`` optimizer steps, before ``trainer.max_steps``; else None."""
        return None

    # Sampling -------------------------------------------------------------------------------------

    def prior(self, xt: Tensor) -> Tensor:
        """Rows of masks (B, L) with what is given when nothing is."""
        return xt

    def start(self, xt: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None]:
        """The state at t = 1 of rows ``xt`` (B, L) that have masks where tokens are to be written.

        Args:
            keys: (B,) int64, of the start noise.

        Returns:
            Its ids (B, L), and the positions (B, L) bool that a sampler has to leave as they are, None for a
            process that leaves them anyway.
        """
        return xt, None


class RoundObjective(Objective[S]):
    """An objective that learns from a teacher, which is the student of the round before."""

    def distill(
        self,
        backbone: Backbone,
        teacher: BoundDenoiser,
        batch: dict[str, Tensor],
        *,
        step: int,
        num_rows: int,
        training: bool,
        stage: Stage,
    ) -> Distilled:
        """Student against teacher; arguments as in ``loss``."""
        raise NotImplementedError

    def round_at(self, step: int) -> int:
        """The round, from 0, that optimizer step ``step`` (from 0) belongs to."""
        raise NotImplementedError

    def promotion(self) -> Promotion:
        """How the student becomes the teacher."""
        return Promotion()

    def describe_round(self, stage: Stage) -> str:
        """What is learnt in this round, for the log."""
        raise NotImplementedError

    def logged(self, stage: Stage) -> dict[str, float]:
        """Numbers for the log of the training."""
        return {}


@dataclass(frozen=True, eq=False, repr=False)
class BoundDenoiser:
    """An objective and a backbone as samplers see them (``diffusion.parameterization.Denoiser``)."""

    objective: Objective
    backbone: Backbone

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None = None) -> Prediction:
        return self.objective.denoise(self.backbone, xt, sigma, mask_seeds)

    def draw_seeds(self, keys: Tensor, length: int) -> Tensor | None:
        return self.objective.draw_seeds(keys, length)

    def refresh_seeds(self, mask_seeds: Tensor | None, where: Tensor, keys: Tensor) -> Tensor | None:
        return self.objective.refresh_seeds(mask_seeds, where, keys)

    def decoder(self, length: int) -> Any:
        """Of an autoregressive objective: reads rows of ``length`` tokens piece by piece (``AR.decoder``)."""
        return self.objective.decoder(self.backbone, length)  # type: ignore[attr-defined]


def num_tokens(batch: dict[str, Tensor], loss_mask: Tensor) -> Tensor:
    """What a micro-batch's summed loss is divided by: accumulation and devices then change nothing.

    With ``batch["num_tokens"]`` (0-d: tokens of the step's global batch / number of its micro-batches) the
    mean over micro-batches, which Lightning and DDP take, is that over the tokens of the global batch.
    Without it all rows are full, or nobody knows the other micro-batches: the own tokens count.

    Args:
        loss_mask: (B, L or less) bool, the tokens in the loss: those of ``attention_mask`` but for the same
            number in every row (ignore_bos; the first token of an autoregressive model).

    Returns:
        0-d, at least 1.
    """
    count = loss_mask.sum()
    if "num_tokens" in batch:
        count = batch["num_tokens"] - (batch["attention_mask"].sum() - count)
    return count.clamp(min=1)
