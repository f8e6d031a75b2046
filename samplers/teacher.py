"""What a teacher says after several reverse steps: the targets of self-distillation through time.

Shapes: B rows, L positions, D width, K teacher evaluations.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from diffusion.parameterization import Prediction
from samplers.ancestral import Ancestral, decide
from samplers.base import State
from samplers.draws import Draws


@torch.no_grad()
def teacher_targets(
    sampler: Ancestral,
    xt: Tensor,
    mask_seeds: Tensor | None,
    times: Tensor,
    dt: float,
    draws: Draws,
    *,
    sees_time: bool,
) -> tuple[Prediction, Tensor | None]:
    """Ask a teacher K times, an ancestral step between each two (SDTT, arXiv 2410.21035, algorithm 1).

    The target of a masked position of ``xt`` is what the teacher said at the step that unmasked it, and for
    those that are masked to the end what it said last. What the last step would unmask plays no part in that,
    so this step is not made. Answers are kept as features in front of the head, never as log-probabilities,
    and the teacher is asked again only about rows that changed.

    Args:
        sampler: of the teacher; its settings say whether masks receive new noise between two steps.
        xt, mask_seeds: ids (B, L) at the first time, and the noise of their masks or None.
        times: (K, B) float64, see ``diffusion.distillation.teacher_times``. A step from t goes to t - dt, at
            most to 0, where everything unmasks.
        draws: source of all randomness.
        sees_time: the teacher is conditioned on time: all rows are asked about at every step.

    Returns:
        The targets as a prediction at ``xt``; and, like ``mask_seeds``, the noise that the teacher saw
        last: with the resets of all its steps but the last, after which it is not asked again.
    """
    state = State(xt, times[0], mask_seeds)
    answer = sampler.predict(state)
    latest = target = answer.features
    for step, (t, next_t) in enumerate(zip(times[:-1], times[1:], strict=True)):
        alpha_t, alpha_s = sampler.schedule.alpha(t), sampler.schedule.alpha((t - dt).clamp(min=0.0))
        decision = decide(state.x == sampler.mask_id, alpha_t, alpha_s, draws.actions(step, xt.shape[1]))
        answer = answer.with_features(latest, state.x)
        following = sampler.reverse_step(step, state, decision, answer, draws)
        changed = (following.x != state.x).any(-1)
        if state.mask_seeds is not None:
            changed |= (following.mask_seeds != state.mask_seeds).any(-1)
        state = replace(following, t=next_t)
        rows = (changed | sees_time).nonzero().squeeze(-1)
        if rows.numel():
            asked = sampler.predict(state.select(rows))
            latest = latest.index_copy(0, rows, asked.features)
        target = torch.where((state.x == sampler.mask_id).unsqueeze(-1), latest, target)
    return answer.with_features(target, xt), state.mask_seeds
