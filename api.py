"""Models in a notebook or a program, without a command line.

>>> from api import load
>>> model = load("outputs/pydoc/first/checkpoints/last.ckpt")  # or a folder or hub name
>>> model.sample(4, steps=64)  # four texts
>>> model.sample(4, prompt="the ____ is", temperature=0.8)  # four that begin so, each _ a token to write
>>> model.sample(prompt="a ________ of the list<end>", predictor="first_hitting", seed=7)  # one, filled in
>>> model.perplexity(["the list is empty"])  # per token; an upper bound for masked models
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from data.tokenizers import boundary_ids
from errors import UserError
from tasks.prompts import encode, starts_of_prompts
from tasks.setup import build_evaluated, evaluation_device
from tasks.stored import stored_configuration
from tasks.weights import read_source
from trainer_base import TrainerBase

_ROWS_AT_ONCE = 16


def load(path: str, *, device: str | None = None, use_ema: bool = True, **settings: Any) -> Model:
    """A model ready to write, with the settings that its checkpoint keeps.

    Args:
        path: a .ckpt of this program, the folder or hub name of a Hugging Face model.
        device: like "cpu" or "cuda"; None: a GPU where there is one.
        use_ema: the averaged weights of a .ckpt, where it has them; a folder has one kind.
        settings: other values for keys of the configuration, the dot written as two underscores:
            ``data__tokenizer_name_or_path="text8"``, ``sampling__p_nucleus=0.9``.

    Raises:
        ValueError: no such model, it does not say what it is, or an unknown setting; one line.
    """
    checkpoint = read_source(str(path), key="path")
    dotted = {name.replace("__", "."): value for name, value in settings.items()}
    cfg = stored_configuration(checkpoint, str(path), dotted)
    cfg.eval.update(checkpoint_path=str(path), disable_ema=not (use_ema and "ema" in checkpoint))
    del checkpoint  # read again below, where it is checked
    return Model(build_evaluated(cfg).to(device or evaluation_device(cfg)))


class Model:
    """A trained model; ``module`` is the algorithm inside, ``tokenizer`` its tokenizer."""

    def __init__(self, module: TrainerBase) -> None:
        self.module = module.eval()
        self.tokenizer = module.tokenizer
        self._config = module.config

    def sample(
        self,
        n: int = 1,
        steps: int | None = None,
        *,
        prompt: str | Sequence[str] | None = None,
        predictor: str | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        batch_size: int = 64,
        return_tokens: bool = False,
    ) -> list[str] | tuple[list[str], list[Tensor]]:
        """Write ``n`` texts, or ``n`` for each of several prompts, those of a prompt in a row.

        Args:
            steps: network calls of samplers that walk on a time grid; None: ``model.length``.
            prompt: every underscore is a token to write; see ``tasks.prompts.starts_of_prompts``.
            predictor, temperature, seed: instead of ``sampling.predictor``, ... of the configuration.
            return_tokens: also give the ids, one tensor a text.
        """
        changes = {"sampling.predictor": predictor, "sampling.temperature": temperature, "seed": seed}
        changes = {name: value for name, value in changes.items() if value is not None}
        module, steps = self._with(changes), steps or self._config.model.length
        prompts = [prompt] if isinstance(prompt, str) else prompt
        with module.ema_weights():
            if prompts is None:
                kept = list(module.sample(n, steps, batch_size=batch_size).tokens)
            else:
                starts = starts_of_prompts(module, list(prompts), key="prompt")
                numbers = starts.numbers(0, n * len(prompts), n)
                samples = module.sample(len(numbers), steps, batch_size=batch_size, **starts.of(numbers))
                kept = starts.kept(samples.tokens, numbers)
        kept = [ids.cpu() for ids in kept]
        texts = self.tokenizer.batch_decode(kept)
        return (texts, kept) if return_tokens else texts

    def nll(self, texts: Sequence[str], *, draws: int = 64, seed: int = 1) -> list[float]:
        """The negative log-likelihood of each text in nats: exact for autoregressive models, for others the
        mean of ``draws`` draws of the NELBO, an upper bound. Its row holds it alone, between bos and eos.
        """
        return [nll for nll, _ in self._scores(texts, draws, seed)]

    def perplexity(self, texts: Sequence[str], *, draws: int = 64, seed: int = 1) -> float:
        """exp of the nats per token over all ``texts``; see ``nll``."""
        nats, tokens = zip(*self._scores(texts, draws, seed), strict=True)
        return math.exp(sum(nats) / sum(tokens))

    def _with(self, changes: dict[str, Any]) -> TrainerBase:
        """The module with another configuration, which the next call replaces."""
        self.module.config = copy.deepcopy(self._config)
        for name, value in changes.items():
            OmegaConf.update(self.module.config, name, value)
        self.module.choose_sampler()
        return self.module

    @torch.no_grad()
    def _scores(self, texts: Sequence[str], draws: int, seed: int) -> list[tuple[float, float]]:
        """Nats and counted tokens of each text."""
        module, scores = self._with({"seed": seed}), []
        copies = 1 if module.exact_likelihood else draws
        with module.ema_weights():
            for text in texts:
                ids = torch.tensor(self._row(text), device=module.device)
                sums = torch.zeros(2, dtype=torch.float64)
                for rows in torch.arange(copies, device=module.device).split(_ROWS_AT_ONCE):
                    x0 = ids.expand(len(rows), -1)
                    batch = {
                        "input_ids": x0,
                        "attention_mask": torch.ones_like(x0, dtype=torch.bool),
                        "row": rows,
                    }
                    found = module.loss(batch, step=0, num_rows=copies, training=False)
                    nll = (found.token_nll.double() * found.loss_mask).sum()
                    sums += torch.stack([nll, found.loss_mask.sum().double()]).cpu()
                scores.append(tuple((sums / copies).tolist()))
        return scores

    def _row(self, text: str) -> list[int]:
        ids = encode(self.tokenizer, text, "text", text)
        length = self._config.model.length
        if self.tokenizer.bos_token_id is not None:
            bos, eos = boundary_ids(self.tokenizer, self._config.data.eos)
            if len(ids) != length or ids[0] != bos:  # else it is a whole row, as samples are
                ids = [bos, *ids, eos]
        if not 1 <= len(ids) <= length:
            raise UserError(
                "text", text, f"has {len(ids)} tokens", f"give 1 to {length}, bos and eos counted"
            )
        return ids
