"""Texts as vectors: what a transformer computes at their last token, for measures that compare sets of texts.

Shapes: N texts, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm import tqdm

from errors import UserError
from models.checkpoint import first_not_finite
from models.scorer import exact_float32

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST = 1024  # tokens of a text that are looked at, as in the library mauve-text


class Featurizer:
    """The last hidden state at the last token of a text, in float32, as the library takes it.

    Equal texts have equal features, to the last bit: each distinct text is computed once, and remembered.
    (Its last bits depend on the batch that it stands in, and k-means may tell such copies apart.)

    Args:
        name: a hub name or a folder of any transformer with its tokenizer; no code of theirs is run.
        local_files_only: do not ask the hub.
        batch_size: texts at once; it changes the cost alone.
        max_tokens: of a text that are looked at, by the model's own tokenizer.

    Raises:
        UserError: there is no such model, or its weights are not finite.
    """

    def __init__(
        self,
        name: str,
        *,
        local_files_only: bool,
        batch_size: int = 8,
        device: torch.device | str = "cpu",
        max_tokens: int = LONGEST,
    ) -> None:
        self.name, self.batch_size, self.device = name, batch_size, torch.device(device)
        self.model, self.tokenizer = _load(name, local_files_only)
        self.model.to(self.device)
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.context = min(max_tokens, context or max_tokens)
        self._known: dict[tuple[int, ...], torch.Tensor] = {}  # ids of a text -> its features

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32, of N texts with a token or more."""
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.context)["input_ids"]
        rows = [tuple(ids) for ids in encoded]
        # The longest come first: too little memory shows at once.
        new = sorted(dict.fromkeys(ids for ids in rows if ids not in self._known), key=len, reverse=True)
        starts = range(0, len(new), self.batch_size)
        for start in tqdm(starts, desc="features", unit="batch", leave=False, disable=None):
            batch = new[start : start + self.batch_size]
            self._known.update(zip(batch, self._features(batch), strict=True))
        return torch.stack([self._known[ids] for ids in rows]).numpy()

    @torch.no_grad()
    def _features(self, batch: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """(B, D) float32 on the CPU, of the ids of B texts."""
        sizes = torch.tensor([len(ids) for ids in batch])
        padded = torch.zeros(len(batch), int(sizes.max()), dtype=torch.int64)
        for row, ids in zip(padded, batch, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        mask = (torch.arange(padded.shape[1]) < sizes[:, None]).long()
        with exact_float32():
            hidden = self.model(input_ids=padded.to(self.device), attention_mask=mask.to(self.device))
        return hidden.last_hidden_state[torch.arange(len(batch)), sizes - 1].float().cpu()

    def has_tokens(self, text: str) -> bool:
        """Whether there is a last token: an empty text has no features."""
        return bool(text) and len(self.tokenizer(text, truncation=True, max_length=2)["input_ids"]) > 0


def _load(name: str, offline: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModel, AutoTokenizer

    local = Path(name).expanduser()
    place, settings = str(local) if local.exists() else name, {"local_files_only": offline or local.exists()}
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **settings)
        model, found = AutoModel.from_pretrained(
            place, dtype=torch.float32, output_loading_info=True, trust_remote_code=False, **settings
        )
    except Exception as error:  # the libraries below raise a dozen unrelated types here
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        problem = f"no model can be read there ({reason})"
        if offline and not local.exists():
            problem = "no such folder, and the hub cannot be reached (its cache has no such model)"
        raise UserError("--featurizer", name, problem, "give a model's folder or hub name") from error
    wrong = sorted(key for key in found["missing_keys"] if not key.startswith("pooler."))
    if wrong:  # transformers would draw them at random and go on
        problem = f"its files lack {wrong[0]} ({len(wrong)} in all)"
        raise UserError("--featurizer", name, problem, "give a whole model")
    if parameter := first_not_finite(model.named_parameters()):
        problem = f"{parameter} has numbers that are not finite"
        raise UserError("--featurizer", name, problem, "give another model")
    return model.eval().requires_grad_(False), tokenizer
