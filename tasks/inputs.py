"""What a training reads, known by its content: a resumed run notices when that is not the same any more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.utils.data import DataLoader

from data.tokenizers import vocabulary_digest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCABULARY, TRAIN, VALIDATION = "vocabulary", "train", "validation"
# Settings that say where that is, and whose content it is. It may lie elsewhere when a run goes on.
PLACES: dict[str, tuple[str, ...]] = {
    "data.train": (TRAIN,),
    "data.source.path": (TRAIN, VALIDATION),
    "data.valid": (VALIDATION,),
    "data.valid_source.path": (VALIDATION,),
    "data.tokenizer_name_or_path": (VOCABULARY,),
    "reflow.save_path": (TRAIN,),
}


def input_digests(
    tokenizer: PreTrainedTokenizerBase, train: DataLoader, validation: DataLoader
) -> dict[str, str]:
    """Digests of the vocabulary, and of the rows (or pairs, or streamed text) of both loaders."""
    return {
        VOCABULARY: vocabulary_digest(tokenizer),
        TRAIN: train.dataset.digest(),
        VALIDATION: validation.dataset.digest(),
    }
