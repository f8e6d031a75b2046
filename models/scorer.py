"""A causal language model of Hugging Face as the judge of texts; nothing of size (B, L, V) exists.

Shapes: B sequences, L positions, N predicted tokens, D width, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from errors import UserError
from models.checkpoint import first_not_finite
from models.export.modeling_mask_diffusion import MaskDiffusionConfig, MaskDiffusionForCausalLM
from models.written import SCORER_KEY, WrittenTexts
from utils import well_formed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCORER_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class CausalLM:
    """A causal model with its tokenizer, as metrics.Scorer wants it.

    Args:
        model: predicts each token from those before it.
        tokenizer: its own; it needs no padding token.
        name: how it is reported.
        chunk_elements: about how many logits exist at a time. None: 2**24 (64 MB in float32) on a CPU,
            2**26 elsewhere.

    Raises:
        ValueError: the model also looks at the tokens behind.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        chunk_elements: int | None = None,
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        own = isinstance(model, MaskDiffusionForCausalLM)
        self.eos_id: int | None = model.config.eos_token_id if own else tokenizer.eos_token_id
        self.chunk_elements = chunk_elements
        self.vocab_size: int = model.get_input_embeddings().num_embeddings
        config = model.config.get_text_config()
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        # Texts for our own models carry all of their special tokens already.
        sizes = {"mask_id": model.config.mask_token_id, "vocab_size": model.config.vocab_size} if own else {}
        self._written = WrittenTexts(tokenizer, name=name, **sizes) if own else None
        self.head = self._plain_head()

    @property
    def dtype(self) -> str:
        """Of the weights and the computation, as it is reported."""
        names = {value: name for name, value in SCORER_DTYPES.items()}
        return names.get(self.model.dtype, str(self.model.dtype).removeprefix("torch."))

    def to(self, device: torch.device | str) -> None:
        """Move the weights."""
        self.model.to(device)

    def encode(self, texts: Sequence[str], max_tokens: int | None) -> list[list[int]]:
        """Ids with the tokens that the scorer's own tokenizer puts around a text (gpt2: none; Llama: bos)."""
        if not len(texts):
            return []
        if self._written is not None:
            return self._written.encode(texts, max_tokens)
        cut = {"truncation": True, "max_length": max_tokens} if max_tokens else {"verbose": False}
        encoded = self.tokenizer([well_formed(text) for text in texts], **cut)["input_ids"]
        largest = max((max(ids) for ids in encoded if ids), default=0)
        if largest >= self.vocab_size:
            raise UserError(
                SCORER_KEY,
                self.name,
                f"its tokenizer gives id {largest}, its model knows {self.vocab_size} ids",
                "give a model and the tokenizer that it was trained with",
            )
        return encoded

    @torch.no_grad()
    def token_nll(self, ids: Tensor, attention_mask: Tensor) -> Tensor:
        """See metrics.Scorer. Padding stands behind all that is predicted, so that nothing sees it."""
        device = self.model.device
        ids, predicted = ids.to(device), attention_mask[:, 1:].to(device)
        targets = ids[:, 1:]
        nll = torch.zeros(targets.shape, device=device)
        with exact_float32():
            if self.head is None:
                for row in range(len(ids)):  # the whole model at once gives all logits: a row at a time
                    logits = self.model(input_ids=ids[row : row + 1], use_cache=False).logits[0, :-1]
                    nll[row] = (
                        F.cross_entropy(logits.float(), targets[row], reduction="none") * predicted[row]
                    )
                return nll
            features = self._features(ids)[:, :-1][predicted]
            nll[predicted] = self._head_nll(features, targets[predicted])
            return nll

    def _features(self, ids: Tensor) -> Tensor:
        return self.model.base_model(input_ids=ids, use_cache=False).last_hidden_state

    def _head_nll(self, features: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy (N,) float32 of features (N, D), a chunk of rows at a time."""
        elements = self.chunk_elements or (2**24 if features.device.type == "cpu" else 2**26)
        rows = max(1, elements // self.vocab_size)
        pairs = zip(features.split(rows), targets.split(rows), strict=True)
        return torch.cat([F.cross_entropy(self.head(f).float(), y, reduction="none") for f, y in pairs])

    @torch.no_grad()
    def _plain_head(self) -> nn.Module | None:
        """The output layer if it is all that stands behind the base model; None if there is more (scaled or
        capped logits, for instance): then the model itself must be asked for logits."""
        probe = torch.arange(4, device=self.model.device)[None] % (self.vocab_size - 1)
        logits = self.model(input_ids=probe, use_cache=False).logits
        probe[:, -1] += 1
        if not _alike(self.model(input_ids=probe, use_cache=False).logits[:, :-1], logits[:, :-1]):
            raise ValueError("what it says of a token depends on the tokens behind: no causal model")
        head, base = self.model.get_output_embeddings(), self.model.base_model
        if head is None or base is self.model:
            return None
        probe[:, -1] -= 1
        return head if _alike(head(self._features(probe)), logits) else None


def load_causal_lm(name_or_path: str, *, dtype: str, local_files_only: bool) -> CausalLM:
    """A causal model and its tokenizer from a folder or the hub, on the CPU; no code of theirs is run.

    A folder that mode=export made of an AR model is read by this program's own class.

    Args:
        dtype: "float32", "bf16", or "auto": bf16 where the files are, otherwise float32 (official use:
            gpt2-large in float32, Llama-3.1-8B in bf16).
        local_files_only: do not ask the hub.

    Raises:
        OSError, ValueError and whatever else transformers raises when there is no such model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerFast

    settings: dict[str, Any] = {"local_files_only": local_files_only, "trust_remote_code": False}
    kind, _ = PreTrainedConfig.get_config_dict(name_or_path, local_files_only=local_files_only)
    own = kind.get("model_type") == MaskDiffusionConfig.model_type
    if own and not kind.get("causal"):
        raise ValueError("a masked diffusion model, which gives no likelihood of texts")
    tokenizer = (PreTrainedTokenizerFast if own else AutoTokenizer).from_pretrained(name_or_path, **settings)
    with _no_bars() if local_files_only else contextlib.nullcontext():
        model, found = (MaskDiffusionForCausalLM if own else AutoModelForCausalLM).from_pretrained(
            name_or_path, dtype=SCORER_DTYPES.get(dtype, "auto"), output_loading_info=True, **settings
        )
    wrong = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if wrong:  # transformers would draw them at random and go on
        raise ValueError(f"its files lack {wrong[0]} ({len(wrong)} in all)")
    if name := first_not_finite(model.named_parameters()):
        raise ValueError(f"{name} has numbers that are not finite")
    if dtype == "auto" and model.dtype is not torch.bfloat16:
        model = model.float()
    return CausalLM(model, tokenizer, name_or_path)


def _alike(a: Tensor, b: Tensor) -> bool:
    """Equal, as the same operations on the same numbers are, but for a little."""
    return torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-3)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Reading files that are here is no progress to watch; downloads are."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@contextlib.contextmanager
def exact_float32() -> Iterator[None]:
    """Products in float32 as stated, also where the training beside allows TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
