"""How a model writes: the sampler that the configuration names, over any start state.

Shapes: B rows, L positions.
"""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from algorithms.objective import BoundDenoiser
from diffusion.randomness import Stream, fold_in, row_keys
from errors import UserError
from samplers.base import CallSchedule, OnStep, Sampler, SamplerSettings, Samples
from samplers.registry import get_sampler
from samplers.schedules import Cosine
from samplers.semi_ar import Strides
from samplers.study.truncated import DRAWS


class Generator:
    """Writes text with an objective and its backbone.

    Args:
        denoiser: objective and backbone.
        config: the composed configuration; ``sampling.*`` is read when it is needed.

    Raises:
        UserError: ``sampling.*`` makes no sense for such a model.
    """

    def __init__(self, denoiser: BoundDenoiser, config: DictConfig) -> None:
        self.denoiser = denoiser
        self.objective, self.backbone = denoiser.objective, denoiser.backbone
        self.config = config
        self.call_schedule: CallSchedule | None = None
        self.choose_sampler()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.backbone.parameters()).device

    def choose_sampler(self) -> None:
        """Take over ``sampling.predictor``, ``order`` and ``semi_ar``.

        Raises:
            ValueError: they make no sense for such a model.
        """
        sampling = self.config.sampling
        settings = self.objective.settings
        predictor = sampling.predictor or settings.default_predictor
        self.sampler_class = get_sampler(predictor, settings.family, sampling.order)
        self.call_schedule = Cosine() if sampling.schedule == "cosine" else None
        self.own_settings()  # a wrong one is found here, not after hours of training
        self.strides = Strides(sampling.stride_length, sampling.num_strides if sampling.semi_ar else 0)
        self.strides.check(settings.family)

    def step_counts(self) -> list[int]:
        """The numbers of steps to sample at; a sampler without a time grid makes the same samples at each."""
        sampling = self.config.sampling
        return list(sampling.steps) if self.sampler_class.traits.on_grid else [self.config.model.length]

    def own_settings(self) -> Any:
        """``Settings`` of the sampler's file, as ``sampling.<file>`` has them; None where it has none."""
        kind = self.sampler_class.own_settings
        if kind is None:
            return None
        return kind(**self.config.sampling[kind.__module__.rsplit(".", 1)[-1]])

    def sampler_settings(self, num_steps: int) -> SamplerSettings:
        """``sampling.*`` as the samplers read it.

        Raises:
            UserError: ``sampling.schedule=auto``, and nothing was measured (``tasks.call_schedule``).
        """
        sampling = self.config.sampling
        if sampling.schedule == "auto" and self.call_schedule is None:
            problem = "is measured on held-out text, which there is not here"
            raise UserError("sampling.schedule", "auto", problem, "use cosine, or mode=sample_eval")
        return SamplerSettings(
            num_steps=num_steps,
            noise_removal=sampling.noise_removal,
            temperature=sampling.temperature,
            p_nucleus=sampling.p_nucleus if sampling.use_p_nucleus else 1.0,
            reset=not (sampling.fix_eps or sampling.mdlm_posterior),
            schedule=self.call_schedule,
            own=self.own_settings(),
        )

    def make_sampler(self, num_steps: int) -> Sampler:
        """The sampler of ``sampling.predictor`` over this model."""
        objective, settings = self.objective, self.sampler_settings(num_steps)
        return self.sampler_class(self.denoiser, objective.schedule, objective.mask_id, settings)

    @torch.no_grad()
    def sample(
        self,
        num_samples: int,
        num_steps: int,
        *,
        first_row: int = 0,
        batch_size: int = 64,
        group_size: int = 1,
        given: Tensor | None = None,
        start_seed: int | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        """Write ``num_samples`` sequences of ``model.length`` tokens from the state at t = 1, or longer ones
        with ``sampling.semi_ar``; ``group_size`` rows in a row share their start noise.

        Row r of the result is a function of (seed, first_row + r) alone: neither the batch size nor the
        device count changes it (up to the rounding of the network).

        Args:
            given: (num_samples, model.length) ids that stay, masks where tokens are to be written: samples
                follow the distribution of the model given these tokens, but for uniform-state models, which
                do not know that they are no noise: those only never change them. None: nothing is given.
            start_seed: all rows share the start noise of this seed; None: ``group_size`` rows do.
        """

        def window(xt: Tensor, start_keys: Tensor, keys: Tensor) -> Samples:
            start_keys = fold_in(start_keys, int(Stream.SAMPLE_START))
            mask_seeds = self.objective.draw_seeds(start_keys, self.config.model.length)
            xt, fixed = self.objective.start(xt, start_keys)
            return self.reverse(xt, 1.0, mask_seeds, keys, num_steps, fixed=fixed, on_step=on_step)

        parts = []
        for start in range(0, num_samples, batch_size):
            rows = torch.arange(start, min(start + batch_size, num_samples), device=self.device)
            starts = rows - rows % group_size
            keys = [row_keys(self.config.seed, Stream.SAMPLE, 0, r + first_row) for r in (starts, rows)]
            if start_seed is not None:
                keys[0] = row_keys(start_seed, Stream.SAMPLE, 0, torch.zeros_like(rows))
            xt = self.prior(len(rows))
            if given is not None:
                here = given[rows.to(given.device)].to(xt.device)
                xt = torch.where(here == self.objective.mask_id, xt, here)
            parts.append(self.strides.sample(window, xt, *keys, self.objective.mask_id))
        return Samples.concatenate(parts)

    def prior(self, num_rows: int) -> Tensor:
        """What is given when nothing is: ids (num_rows, model.length), masks where something is to stand."""
        shape = (num_rows, self.config.model.length)
        masks = torch.full(shape, self.objective.mask_id, dtype=torch.int64, device=self.device)
        return self.objective.prior(masks)

    @torch.no_grad()
    def reverse(
        self,
        xt: Tensor,
        t: Tensor | float,
        mask_seeds: Tensor | None,
        keys: Tensor,
        num_steps: int,
        *,
        fixed: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        """Run the reverse process from any state.

        Args:
            xt: (B, L) ids; what is not masked stays.
            t: start times in (0, 1], one for all or (B,); the time grid is scaled by them.
            mask_seeds: mask noise seeds of ``xt`` (B, L), or None.
            keys: (B,) int64, one per row: they key all draws.
            num_steps: of samplers that walk on a time grid.
            fixed, on_step: see ``Sampler.sample``.
        """
        was_training = self.backbone.training
        self.backbone.eval()
        try:
            sampler = self.make_sampler(num_steps)
            draws = DRAWS[self.config.sampling.draws](keys)
            return sampler.sample(xt, t, mask_seeds, draws, fixed=fixed, on_step=on_step)
        finally:
            self.backbone.train(was_training)
