"""What all objectives on stored pairs (xt, t) -> x0 share, whatever the process."""

from __future__ import annotations

from torch import Tensor

from algorithms.mdlm import MDLM, Noised
from errors import ABSENT, UserError

EARLIEST = 2.0**-53


def stored_pairs(objective: MDLM, batch: dict[str, Tensor], mask_seeds: Tensor | None) -> Noised:
    """Noised ids, times and texts from pairs that another model made, in place of noising text.

    Args:
        batch: ``xt`` (B, L) and ``t`` (B,) beside what every batch has.
        mask_seeds: the mask noise of the pairs, a seed for every position (B, L); None for models without.

    Raises:
        UserError: the batch is text, without pairs.
    """
    if "xt" not in batch:
        problem = f"algo={objective.settings.name} trains on stored pairs, and this data has none"
        raise UserError("data", ABSENT, problem, "use data=reflow-dataset-general")
    loss_mask = batch["attention_mask"].clone()
    if objective.context.ignore_bos:
        loss_mask[:, 0] = False
    # A stored 0 (times drawn from [0, 1)) means that nothing is noised; no weight may be infinite.
    x0, xt, t = batch["input_ids"], batch["xt"], batch["t"].clamp(min=EARLIEST)
    schedule = objective.schedule
    return Noised(x0, xt, t, schedule.weight(t), schedule.sigma(t), mask_seeds, loss_mask)
