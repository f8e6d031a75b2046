"""Conditional likelihoods of texts under any model: exact where that can be, else a bound with its error.

Shapes: L positions of a row; ids (L,) int64 and is_open (L,) bool, the positions that are judged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from errors import UserError
from evaluation.conditional import MOST_EXACT, Likelihood, any_order, bound
from tasks.prompts import encode, encode_prompt
from trainer_base import TrainerBase

Row = tuple[Tensor, Tensor]


def row_of(module: TrainerBase, text: str, given: str) -> Row:
    """The row of a text and which of its positions are judged.

    Args:
        given: without a blank the beginning that ``text`` continues: the row is bos, ``given``, ``text``, and
            nothing stands behind it. With blanks ``text`` is whole, and the tokens in the blanks are judged.

    Raises:
        UserError: the row is too long, or ``text`` does not fit ``given``.
    """
    start, is_end = encode_prompt(given, module, "given") if given else (_bos(module), False)
    if module.mask_id in start:
        ids, is_open = _filled(module, text, start, is_end)
    else:
        start = [*_bos(module), *encode(module.tokenizer, given, "given", given)] if given else start
        more = encode(module.tokenizer, text, "text", text)
        ids, is_open = [*start, *more], [False] * len(start) + [True] * len(more)
    if len(ids) > module.config.model.length or not any(is_open):
        problem = f"has {len(ids)} tokens with what is given, {sum(is_open)} of them to be judged"
        hint = f"give 1 to model.length={module.config.model.length}"
        raise UserError("text", text, problem, hint)
    return torch.tensor(ids, device=module.device), torch.tensor(is_open, device=module.device)


def _bos(module: TrainerBase) -> list[int]:
    bos = module.tokenizer.bos_token_id
    return [] if bos is None else [bos]


def _filled(module: TrainerBase, text: str, start: list[int], is_end: bool) -> tuple[list[int], list[bool]]:
    """A whole text over a prompt with blanks; what the prompt gives has to stand in the text."""
    ids = [*_bos(module), *encode(module.tokenizer, text, "text", text), *(start[-1:] if is_end else [])]
    is_open = [token == module.mask_id for token in start]
    fits = len(ids) == len(start) and all(
        free or token == known for token, known, free in zip(ids, start, is_open, strict=True)
    )
    if not fits:
        problem = f"its {len(ids)} tokens do not fit the {len(start)} of what is given"
        hint = "repeat what is given, and write a blank of one _ for each token"
        raise UserError("text", text, problem, hint)
    if module.objective.settings.family == "autoregressive" and False in is_open[is_open.index(True) :]:
        problem = "an autoregressive model has no likelihood of blanks that text follows"
        raise UserError("given", text, problem, "give the beginning alone, or use a masked model")
    return ids, is_open


@torch.no_grad()
def row_likelihoods(
    module: TrainerBase, rows: Sequence[Row], *, draws: int = 64, seed: int = 1, exact: bool | None = None
) -> list[Likelihood]:
    """The likelihood of the open positions of every row, by one way for all of them.

    Args:
        draws, seed: of bounds; the same draws for all rows.
        exact: see ``api.Model.likelihoods``.

    Raises:
        UserError: an exact value is asked for and cannot be had, or an odd number of draws.
    """
    settings = module.objective.settings
    with module.ema_weights():
        if settings.exact_likelihood:
            return [_autoregressive(module, ids, is_open) for ids, is_open in rows]
        longest = max((int(is_open.sum()) for _, is_open in rows), default=0)
        possible = settings.has_masks and not _random_masks(module) and longest <= MOST_EXACT
        if exact and not possible:
            problem = f"this model has no exact likelihood of {longest} tokens"
            hint = f"judge at most {MOST_EXACT} tokens of a model with a single mask, or take bounds"
            raise UserError("exact", True, problem, hint)
        if exact is not False and possible:
            return [_any_order(module, ids, is_open) for ids, is_open in rows]
        if draws < 2 or draws % 2:
            raise UserError("draws", draws, "strata come in pairs", "give an even number of 2 or more")
        return [_bound(module, ids, is_open, draws, seed) for ids, is_open in rows]


def _random_masks(module: TrainerBase) -> bool:
    keys = torch.zeros(1, dtype=torch.int64, device=module.device)
    return module.objective.draw_seeds(keys, 1) is not None


def _autoregressive(module: TrainerBase, ids: Tensor, is_open: Tensor) -> Likelihood:
    objective, nll = module.objective, torch.zeros(len(ids), dtype=torch.float64)
    if len(ids) > 1:
        seen = torch.ones(1, len(ids), dtype=torch.bool, device=ids.device)
        nll[1:] = objective.token_log_probs(module.backbone, ids[None], seen)[0].double().cpu()
    if bool(is_open[0]):  # no bos: the first token is predicted behind the mask
        start = torch.tensor([[module.mask_id]], device=ids.device)
        nll[0] = (
            objective.next_token(module.backbone, start)
            .nll(start == module.mask_id, ids[:1])
            .double()
            .cpu()[0]
        )
    nll = torch.where(is_open.cpu(), nll, 0.0)
    return Likelihood(float(nll.sum()), 0.0, nll, int(is_open.sum()), "exact")


def _any_order(module: TrainerBase, ids: Tensor, is_open: Tensor) -> Likelihood:
    objective = module.objective
    return any_order(module.denoiser, objective.schedule, ids, is_open, objective.mask_id)


def _bound(module: TrainerBase, ids: Tensor, is_open: Tensor, draws: int, seed: int) -> Likelihood:
    objective = module.objective
    return bound(
        module.denoiser,
        objective.schedule,
        objective.process,  # type: ignore[attr-defined]
        ids,
        is_open,
        objective.mask_id,
        draws=draws,
        seed=seed,
    )
