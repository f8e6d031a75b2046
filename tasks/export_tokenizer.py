"""The tokenizer of an exported folder: its mask token is the model's mask, its padding another id."""

from __future__ import annotations

import copy
import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data.tokenizers import EOS_FROM_SEP, has_own_eos
from tasks.prompts import joins_spaces
from trainer_base import TrainerBase

_NAMES = ("<mask>", "[MASK]", "<|mask|>", "<the_mask>")


def exported_tokenizer(module: TrainerBase) -> PreTrainedTokenizerBase:
    """The tokenizer of ``module`` as other programs need it.

    Of a model with a mask the tokenizer gets a mask token with the mask's id where it has none, and eos as
    padding where its own has that id or none of the model's V: this program knows padding without an id,
    others do not. All other ids stay. Models without a mask keep their tokenizer as it is.
    """
    tokenizer, mask_id = module.tokenizer, module.mask_id
    if module.objective.settings.family == "uniform":
        return tokenizer
    pad = tokenizer.pad_token_id
    padded = pad is not None and pad != mask_id and pad < module.vocab_size
    if tokenizer.mask_token_id is not None and padded:
        return tokenizer
    made = _renamed(tokenizer, mask_id, module.vocab_size)
    if not padded:
        made.pad_token = tokenizer.eos_token
    return made


def _renamed(tokenizer: PreTrainedTokenizerBase, mask_id: int, vocab_size: int) -> PreTrainedTokenizerBase:
    """A copy in which the token ``mask_id`` is the mask token, and none has an id outside of V."""
    taken, name = tokenizer.get_vocab(), tokenizer.mask_token
    if name is None:
        name = next(name for name in _NAMES if name not in taken)
    if not hasattr(tokenizer, "backend_tokenizer"):  # no file to edit: the token keeps the name that it has
        made = copy.deepcopy(tokenizer)
        made.mask_token = tokenizer.convert_ids_to_tokens(mask_id) if mask_id < len(tokenizer) else name
        return made
    special = {
        kind: getattr(tokenizer, f"{kind}_token") for kind in ("bos", "eos", "unk", "sep", "cls", "pad")
    }
    kept = {f"{kind}_token": token for kind, token in special.items() if token and taken[token] != mask_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id >= vocab_size:
        del kept["pad_token"]
    made = PreTrainedTokenizerFast(
        tokenizer_object=_backend(tokenizer, name, mask_id, vocab_size),
        clean_up_tokenization_spaces=False,
        model_max_length=tokenizer.model_max_length,
        mask_token=name,
        **kept,
    )
    if not has_own_eos(tokenizer):
        made.init_kwargs[EOS_FROM_SEP] = True
    return made


def _backend(tokenizer: PreTrainedTokenizerBase, name: str, mask_id: int, vocab_size: int) -> Tokenizer:
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    content.update(truncation=None, padding=None)
    token = {"id": mask_id, "content": name, "special": True, "normalized": False, "single_word": False}
    token |= {
        "lstrip": joins_spaces(tokenizer),
        "rstrip": False,
    }  # the space in front belongs to a word's token
    added = [other for other in content["added_tokens"] if other["id"] < vocab_size]
    if tokenizer.mask_token is None:
        added = [*(other for other in added if other["id"] != mask_id), token]
    content["added_tokens"] = sorted(added, key=lambda other: other["id"])
    made = Tokenizer.from_str(json.dumps(content))
    if made.token_to_id(name) != mask_id:  # ids with gaps, which added tokens would fill
        content["model"]["vocab"][name] = mask_id
        made = Tokenizer.from_str(json.dumps(content))
    assert made.token_to_id(name) == mask_id
    return made
