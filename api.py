"""Models in a notebook or a program, without a command line.

>>> from api import load
>>> model = load("outputs/pydoc/first/checkpoints/last.ckpt")  # or a folder or hub name
>>> model.sample(4, steps=64)  # four texts
>>> model.sample(4, prompt="the ____ is", temperature=0.8)  # four that begin so, each _ a token to write
>>> model.sample(prompt="a ________ of the list<end>", predictor="first_hitting", seed=7)  # one, filled in
>>> model.perplexity(["the list is empty"])  # per token; an upper bound for masked models
>>> model.nll([" is empty"], given=["the list"])  # of what follows a beginning
>>> model.nll(["the list of"], given=["the ____ of"])  # of what stands in the blanks, given all the rest
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.decoding import decode
from data.tokenizers import boundary_ids
from errors import UserError
from evaluation.conditional import Likelihood
from evaluation.estimates import ratio
from evaluation.samples import read_samples
from models.written import unknown_id
from tasks.likelihoods import row_likelihoods, row_of
from tasks.prompts import encode, starts_of_prompts
from tasks.scoring import written_texts
from tasks.setup import build_evaluated, evaluation_device
from tasks.stored import stored_configuration
from tasks.weights import read_source
from trainer_base import TrainerBase
from utils import get_logger

log = get_logger("api")
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


class Written(str):
    """A text of ``Model.sample`` that knows the ids (L,) which were decoded to it, and by which tokenizer."""

    tokens: Tensor
    tokenizer: PreTrainedTokenizerBase


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
                kept = list(module.generator.sample(n, steps, batch_size=batch_size).tokens)
            else:
                starts = starts_of_prompts(module, list(prompts), key="prompt")
                numbers = starts.numbers(0, n * len(prompts), n)
                samples = module.generator.sample(
                    len(numbers), steps, batch_size=batch_size, **starts.of(numbers)
                )
                kept = starts.kept(samples.tokens, numbers)
        kept = [ids.cpu() for ids in kept]
        texts = [Written(text) for text in decode(self.tokenizer, kept, self._config.eval.decoding)]
        for text, ids in zip(texts, kept, strict=True):
            text.tokens, text.tokenizer = ids, self.tokenizer
        return (texts, kept) if return_tokens else texts

    def nll(
        self,
        texts: Sequence[str],
        *,
        given: str | Sequence[str] | None = None,
        draws: int = 64,
        seed: int = 1,
    ) -> list[float]:
        """The negative log-likelihood of each text in nats: exact for autoregressive models, for others the
        mean of ``draws`` draws of the NELBO, an upper bound. Its row holds it alone, between bos and eos; the
        names of special tokens in it are text. A text that ``sample`` gave is the row that it wrote; any
        other that begins with the name of bos is a row as it is, cut at ``model.length``, in which those
        names are the tokens.

        Args:
            given: what is known, one for all texts or one for each: see ``likelihoods``.
        """
        if given is not None:
            return [found.nll for found in self.likelihoods(texts, given=given, draws=draws, seed=seed)]
        return [nll for nll, _ in self._scores(texts, draws, seed)]

    def likelihoods(
        self,
        texts: Sequence[str],
        *,
        given: str | Sequence[str],
        draws: int = 64,
        seed: int = 1,
        exact: bool | None = None,
    ) -> list[Likelihood]:
        """The conditional likelihood of each text: its nats, their standard error, and those of each token.

        Autoregressive models: exact. Masked models with a single mask and at most
        ``evaluation.conditional.MOST_EXACT`` tokens to be judged in every text: the exact probability that a
        sampler writes them which unmasks one random position a call. All others: the NELBO by ``draws``
        stratified draws, which are the same for all texts, so that the choices of a question compare.

        Args:
            given: without a blank the beginning that a text continues (nothing is put between them); with
                blanks (``tasks.prompts.starts_of_prompts``) the rest of a text, which then is whole.
            draws: of a bound, an even number.
            exact: True: exact values or an error; False: bounds; None: exact values where all texts have
                them.

        Raises:
            UserError: a text that is too long, does not fit what is given, or has no exact value.
        """
        known = [given] * len(texts) if isinstance(given, str) else list(given)
        if len(known) != len(texts):
            raise UserError(
                "given", f"{len(known)} texts", f"there are {len(texts)} to judge", "give as many"
            )
        rows = [row_of(self.module, text, one) for text, one in zip(texts, known, strict=True)]
        return row_likelihoods(self._with({"seed": seed}), rows, draws=draws, seed=seed, exact=exact)

    def token_nll(
        self, text: str, *, given: str, draws: int = 64, seed: int = 1
    ) -> list[tuple[str, float | None]]:
        """Each token of the row with the nats that it adds, by ``likelihoods``; None for a given one. Of a
        masked model they are parts of a bound: a token's mean over the orders in which it is written."""
        (found,) = self.likelihoods([text], given=given, draws=draws, seed=seed, exact=self._is_exact())
        ids, is_open = row_of(self.module, text, given)
        names = self.tokenizer.convert_ids_to_tokens(ids.tolist())
        nats = found.token_nll.tolist()
        return [(name, nats[at] if is_open[at] else None) for at, name in enumerate(names)]

    def _is_exact(self) -> bool:
        return self.module.objective.settings.exact_likelihood

    def score(self, file: str, *, draws: int = 64, seed: int = 1) -> list[dict[str, Any]]:
        """The perplexity of a file of samples under this model, one object for each set of texts in it.

        Args:
            file: as ``judge.files`` takes them: .json, .jsonl, .txt, .npy of this model's ids.

        Returns:
            name, perplexity, interval (95 %, texts are the units), nats, tokens, num_texts, and whether the
            likelihood is exact or a bound.
        """
        found = []
        decoding = self._config.eval.decoding
        for one in read_samples(file, None, key="file", tokenizer=lambda: self.tokenizer, decoding=decoding):
            nats, tokens = zip(*self._scores(one.texts, draws, seed), strict=True)
            value = ratio(np.array(nats), np.array(tokens), lambda nll: math.exp(min(nll, 700.0)))
            found.append(
                {
                    "name": one.name,
                    "perplexity": value.value,
                    "interval": None if value.low is None else [value.low, value.high],
                    "nats": sum(nats),
                    "tokens": int(sum(tokens)),
                    "num_texts": len(nats),
                    "likelihood": "exact" if self._is_exact() else "bound",
                }
            )
        return found

    def perplexity(self, texts: Sequence[str], *, draws: int = 64, seed: int = 1) -> float:
        """exp of the nats per token over all ``texts``; see ``nll``."""
        nats, tokens = zip(*self._scores(texts, draws, seed), strict=True)
        return math.exp(sum(nats) / sum(tokens))

    def _with(self, changes: dict[str, Any]) -> TrainerBase:
        """The module with another configuration, which the next call replaces."""
        config = copy.deepcopy(self._config)
        for name, value in changes.items():
            if value is not None:
                OmegaConf.update(config, name, value)
        self.module.reconfigure(config)
        return self.module

    @torch.no_grad()
    def _scores(self, texts: Sequence[str], draws: int, seed: int) -> list[tuple[float, float]]:
        """Nats and counted tokens of each text."""
        module, scores = self._with({"seed": seed}), []
        copies = 1 if module.objective.settings.exact_likelihood else draws
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
        length = self._config.model.length
        if isinstance(text, Written) and text.tokenizer is self.tokenizer and self._finished(text.tokens):
            ids = text.tokens.tolist()
        elif self._is_row(text):
            ids = self._row_as_it_is(text)
        else:
            ids = encode(self.tokenizer, text, "text", text)
            bos_id = self.tokenizer.bos_token_id
            if bos_id is not None and (len(ids) != length or ids[0] != bos_id):
                bos, eos = boundary_ids(self.tokenizer, self._config.data.eos)
                ids = [bos, *ids, eos]
        if not 1 <= len(ids) <= length:
            raise UserError(
                "text", text, f"has {len(ids)} tokens", f"give 1 to {length}, bos and eos counted"
            )
        return ids

    def _finished(self, ids: Tensor) -> bool:
        return self.module.objective.settings.family == "uniform" or not bool(
            (ids == self.module.mask_id).any()
        )

    def _is_row(self, text: str) -> bool:
        """Whether a text begins with the name of bos, and that is a name: not a word like all others."""
        name = self.tokenizer.bos_token
        return (
            name is not None
            and text.startswith(name)
            and self.tokenizer(name, add_special_tokens=False, split_special_tokens=True)["input_ids"]
            != [self.tokenizer.bos_token_id]
        )

    def _row_as_it_is(self, text: str) -> list[int]:
        ids = written_texts(self.module, "the model").encode([text])[0]
        unknown, length = unknown_id(self.tokenizer), self._config.model.length
        if unknown is not None and ids.count(unknown) > text.count(self.tokenizer.unk_token):
            known = "write it like the text of the training"
            raise UserError("text", text, "the tokenizer does not know all of it", known)
        if len(ids) > length:
            # The tokens of a text need not be those that wrote it, and may be a few more.
            log.warning("a text of %d tokens is cut at model.length=%d", len(ids), length)
        return ids[:length]
