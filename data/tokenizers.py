"""Tokenizers: the three built-in ones, and every other by folder or hub name.

All of them are ordinary ``transformers`` tokenizers, so ``save_pretrained`` and ``from_pretrained`` work.
The heavy libraries are imported on first use.
"""

from __future__ import annotations

import hashlib
import json
import string
from pathlib import Path
from typing import TYPE_CHECKING

from data.hub import hub_reachable
from errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TEXT8_SPECIAL = ("[CLS]", "[SEP]", "[BOS]", "[EOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]")
SYNTHETIC_SIZE = 256
SYNTHETIC_BOS = 254
SYNTHETIC_EOS = 255
ALIGN_SIZE = 50_000
LARGEST_ALIGN = 1_000_000
PAD = "[PAD]"  # the padding token of tokenizers that have none

TOKENIZER_KEY = "data.tokenizer_name_or_path"
EOS_FROM_SEP = "eos_from_sep"  # noted in tokenizer_config.json: eos is the sep token, for want of an own one


def get_tokenizer(name_or_path: str, vocab_size: int | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a name: ``text8``, ``synthetic``, ``synthetic-align``, a folder, or a hub name.

    Args:
        name_or_path: a local folder wins over a hub name, never over a built-in one.
        vocab_size: number of symbols, for ``synthetic-align`` (50,000 when None) and no other.

    Raises:
        ValueError: a size that the tokenizer cannot have, a tokenizer that cannot be found or read, or
            one without any token to begin or end a sequence.
    """
    if name_or_path == "synthetic-align":
        tokenizer = _align_tokenizer(ALIGN_SIZE if vocab_size is None else vocab_size)
    elif name_or_path == "text8":
        tokenizer = _text8_tokenizer()
    elif name_or_path == "synthetic":
        tokenizer = _synthetic_tokenizer()
    else:
        tokenizer = _load(name_or_path)
    tokenizer.name_or_path = tokenizer.name_or_path or name_or_path
    if vocab_size not in (None, tokenizer.vocab_size):
        raise UserError(
            "data.vocab_size",
            vocab_size,
            f"the tokenizer {name_or_path} has {tokenizer.vocab_size} tokens",
            "leave it null",
        )
    return tokenizer


def mask_id_of(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """``(mask_id, V)`` of the absorbing family and AR; ``V`` counts the mask.

    A tokenizer with a mask token keeps it (bert: 103, V 30522); any other gets one new id behind all ids that
    it has, added tokens included (gpt2: 50257, V 50258). The [PAD] that ``get_tokenizer`` adds does not
    count, and so gpt2's has the mask's id: padding is known from the attention mask alone, never from ids.
    """
    last = _last_own_id(tokenizer)
    mask_id = tokenizer.mask_token_id
    return (last + 1, last + 2) if mask_id is None else (mask_id, max(last, mask_id) + 1)


def name_mask(tokenizer: PreTrainedTokenizerBase, mask_id: int | None) -> None:
    """Let a tokenizer without a mask token know which of its ids the model takes for one (LLaDA).

    Raises:
        UserError: it has no such id.
    """
    if mask_id is None or tokenizer.mask_token_id is not None:
        return
    token = tokenizer.convert_ids_to_tokens(mask_id) if mask_id < len(tokenizer) else None
    if token is None:
        problem = f"the tokenizer {_name_of(tokenizer)} has no mask token and no such id"
        raise UserError("model.mask_token_id", mask_id, problem, "give the id of a token that it has")
    tokenizer.mask_token = token


def number_of_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """V of the uniform family: all ids of the tokenizer, an added [PAD] included (gpt2: 50258)."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)


def _last_own_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The largest id but for a [PAD] that was added behind all others and is nothing else."""
    ids = sorted(tokenizer.get_vocab().values())
    if ids[-1] != tokenizer.pad_token_id or ids[-1] < tokenizer.vocab_size:
        return ids[-1]
    added = tokenizer.pad_token == PAD and PAD not in (tokenizer.bos_token, tokenizer.eos_token)
    return ids[-2] if added and len(ids) > 1 else ids[-1]


def vocabulary_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of which word has which id: whether ids mean the same, whatever the merges."""
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def boundary_ids(tokenizer: PreTrainedTokenizerBase, eos: str) -> tuple[int, int]:
    """``(bos, eos)`` ids put around blocks and behind documents.

    A tokenizer with an eos token of its own has that one. Of those whose eos is their sep token, for want of
    an own one, ``eos="official"`` takes the first id of ``tokenizer.encode(eos_token)``, as trained weights
    expect (bert: 101, [CLS]), and ``eos="sep"`` the sep token (bert: 102).

    Raises:
        UserError: there is no bos or no eos, or one of them is the mask.
    """
    name, bos_id, eos_id = _name_of(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id
    hint = "choose another tokenizer"
    if bos_id is None or eos_id is None:
        raise UserError(TOKENIZER_KEY, name, "it has no bos or no eos token to put around sequences", hint)
    if eos not in ("sep", "official"):
        raise UserError("data.eos", eos, "no such rule", "use official or sep")
    if eos == "official" and not has_own_eos(tokenizer):
        eos_id = first_of_eos(tokenizer)
    if tokenizer.mask_token_id in (bos_id, eos_id):
        raise UserError(
            TOKENIZER_KEY, name, f"its mask token, id {tokenizer.mask_token_id}, is its bos or eos", hint
        )
    return bos_id, eos_id


def has_own_eos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether its eos token is not just its sep token in that place, as bert's."""
    if EOS_FROM_SEP in tokenizer.init_kwargs:
        return False
    # Folders that earlier versions saved do not note it; such tokenizers of bert's kind define no eos.
    is_sep = (tokenizer.bos_token, tokenizer.eos_token) == (tokenizer.cls_token, tokenizer.sep_token)
    return not (is_sep and is_wordpiece(tokenizer))


def first_of_eos(tokenizer: PreTrainedTokenizerBase) -> int:
    """The first id of the encoded eos token: the official rule, which finds what stands in front."""
    return tokenizer.encode(tokenizer.eos_token)[0]


def is_wordpiece(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it is of bert's kind: pieces of words, which are joined by blanks."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return type(getattr(backend, "model", None)).__name__ == "WordPiece"


def padding_id(tokenizer: PreTrainedTokenizerBase, eos_id: int) -> int:
    """The id at padded positions: its pad token's, or eos where that is the mask token or outside of V.

    gpt2's added [PAD] has the mask's id, as officially.
    """
    pad, (_, vocab_size) = tokenizer.pad_token_id, mask_id_of(tokenizer)
    if pad is None or pad >= vocab_size or pad == tokenizer.mask_token_id:
        return eos_id
    return pad


def _name_of(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or type(tokenizer).__name__


def _text8_tokenizer() -> PreTrainedTokenizerFast:
    """35 symbols: eight special ones, a-z and the space; one token a character."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    symbols = [*TEXT8_SPECIAL, *string.ascii_lowercase, " "]
    backend = Tokenizer(models.WordLevel({s: i for i, s in enumerate(symbols)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()  # without it, a blank comes between any two tokens
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[BOS]",
        eos_token="[EOS]",
        mask_token="[MASK]",
        pad_token="[PAD]",
        unk_token="[UNK]",
        additional_special_tokens=["[RESERVED]"],  # or its text would be read as letters
        clean_up_tokenization_spaces=False,
    )


def _synthetic_tokenizer() -> PreTrainedTokenizerFast:
    """The numbers 0..253, then [BOS] 254 and [EOS] 255, written with blanks between."""
    symbols = [str(i) for i in range(SYNTHETIC_BOS)] + ["[BOS]", "[EOS]"]
    return _numbers_tokenizer(symbols, bos_token="[BOS]", eos_token="[EOS]")


def _align_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """The numbers 0..vocab_size-1; sequences have no borders, so there is no bos and no eos."""
    if not 1 <= vocab_size <= LARGEST_ALIGN:
        raise UserError(
            "data.vocab_size", vocab_size, "no size of this vocabulary", f"use 1 to {LARGEST_ALIGN}"
        )
    return _numbers_tokenizer([str(i) for i in range(vocab_size)])


def _numbers_tokenizer(symbols: list[str], **special: str) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({s: i for i, s in enumerate(symbols)}))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False, **special)


def _load(name_or_path: str) -> PreTrainedTokenizerBase:
    """A tokenizer from a folder or the hub, with [PAD] added and bos/eos filled in where they are missing."""
    from transformers import AutoTokenizer

    local = Path(name_or_path).expanduser()
    where = str(local) if local.exists() else name_or_path
    offline = not local.exists() and not hub_reachable()
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            where, local_files_only=local.exists() or offline, trust_remote_code=False
        )
    except Exception as error:  # the libraries below raise a dozen unrelated types here
        if local.exists():
            problem = f"no tokenizer can be read there ({_first_line(error)})"
        elif offline:
            problem = "the hub cannot be reached, and neither its cache nor a local folder has this tokenizer"
        else:
            problem = f"it is no local folder, and the hub gives no such tokenizer ({_first_line(error)})"
        hint = "give a folder that holds tokenizer.json, or text8, synthetic, synthetic-align"
        raise UserError(TOKENIZER_KEY, name_or_path, problem, hint) from error
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if tokenizer.bos_token is None:
        tokenizer.bos_token = tokenizer.cls_token
    if tokenizer.eos_token is None:
        tokenizer.eos_token = tokenizer.sep_token
        tokenizer.init_kwargs[EOS_FROM_SEP] = True
    for wanted, fallback in (("bos", "cls"), ("eos", "sep")):
        if getattr(tokenizer, f"{wanted}_token") is None:
            raise UserError(
                TOKENIZER_KEY,
                name_or_path,
                f"it has neither a {wanted} nor a {fallback} token",
                f"name its {wanted}_token in tokenizer_config.json, or use another tokenizer",
            )
    words = len(set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids))
    if words < 2:
        problem = f"besides its special tokens it has {words} token{'s' * (words != 1)}: there is no choice"
        raise UserError(TOKENIZER_KEY, name_or_path, problem, "use another tokenizer")
    return tokenizer


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
