"""MAUVE between generated texts and human ones: ``python eval_mauve.py --generation_path F``.

MAUVE (Pillutla et al., NeurIPS 2021) is the area under the curve of divergences between the two sets, whose
texts are features of a language model, quantised by k-means; 1: nothing tells them apart. The measure itself
is the library mauve-text; features are made here, of any model. Shapes: N texts, D features.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data.batching import permutation
from data.hub import hub_reachable
from data.prepare import Recipe, prepare
from data.tokenizers import get_tokenizer
from errors import ABSENT, UserError
from models.featurizer import Featurizer
from utils import get_logger, setup_logging, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = get_logger("mauve")

HUMAN = "openwebtext-valid"
SCALING = 5.0  # of divergences, the library's default
# What the libraries of this program call a setting -> the flag that sets it here.
FLAGS = {
    "data.tokenizer_name_or_path=": "--tokenizer=",
    "data.valid=": "--human_path=",
    "model.length=": "--length=",
}


def mauve(human: np.ndarray, generated: np.ndarray, seeds: Sequence[int]) -> dict[str, Any]:
    """MAUVE of features (N, D) and (M, D): the mean over ``seeds`` of its k-means, and what each seed gave.

    The number of clusters is the library's own choice: a tenth of the smaller set, at least 2. With few texts
    the measure depends on N and M; only values of equal N and M compare.
    """
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise UserError(
            "mauve-text",
            ABSENT,
            f"cannot be imported ({error})",
            "install it: pip install -r requirements.txt",
        ) from error
    found = [
        compute_mauve(p_features=human, q_features=generated, seed=seed, mauve_scaling_factor=SCALING)
        for seed in seeds
    ]
    each = [float(one.mauve) for one in found]
    return {
        "mauve": float(np.mean(each)),
        "mauve_std": float(np.std(each, ddof=1)) if len(each) > 1 else None,
        "mauve_by_seed": each,
        "seeds": list(seeds),
        "mauve_star": float(np.mean([one.mauve_star for one in found])),
        "frontier_integral": float(np.mean([one.frontier_integral for one in found])),
        "num_buckets": int(found[0].num_buckets),
        "scaling_factor": SCALING,
        "mauve_text": version("mauve-text"),
    }


def human_texts(
    path: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sample_num: int,
    seq_len: int,
    length: int,
    seed: int,
    cache_dir: str,
) -> list[str]:
    """``sample_num`` human texts: the first ``seq_len`` tokens, bos included, of packed blocks.

    The blocks come in the order of ``permutation(their number, seed, 0)``, in which
    mode=cond_sample_eval_with_tc takes its prefixes (with seed 42), so that each text begins with one.

    Args:
        path: None: the last 100,000 documents of OpenWebText; a text data file or folder, packed likewise; a
            .json file with a list of texts or a result with ``generated_seqs``, taken as they are.
        length: tokens of a block.

    Raises:
        ValueError: the texts cannot be read, or there are fewer.
    """
    ready = _ready_texts(path)
    if ready is not None:
        return [ready[row] for row in _drawn(len(ready), sample_num, seed, "texts")]
    if seq_len > length:
        raise UserError("--seq_len", seq_len, f"blocks have {length} tokens", "raise --length")
    recipe = Recipe(
        source=path or HUMAN,
        role="validation",
        length=length,
        wrap=True,
        insert_eos=True,
        eos="official",
        rules=Path(path).stem if path else "openwebtext",
        revision=None,
        cache_dir=Path(cache_dir).expanduser(),
    )
    blocks = prepare(recipe, tokenizer)
    rows = _drawn(len(blocks), sample_num, seed, f"blocks of {length} tokens")
    return tokenizer.batch_decode(blocks.fetch(rows)["input_ids"][:, :seq_len])


def _drawn(number: int, wanted: int, seed: int, what: str) -> np.ndarray:
    if wanted > number:
        hint = f"use --sample_num {number}, or more text"
        raise UserError("--sample_num", wanted, f"there are {number} human {what}", hint)
    return permutation(number, seed, 0)[:wanted]


def _ready_texts(path: str | None) -> list[str] | None:
    """The texts of a .json file that is a list of them or a result; None for all other sources."""
    if path is None or Path(path).suffix != ".json":
        return None
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # one object a line, or no file: the reader of data sets says more
    texts = content.get("generated_seqs") if isinstance(content, dict) else content
    return texts if _are_texts(texts) else None


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def generated_runs(path: str) -> list[dict[str, Any]]:
    """The objects with ``generated_seqs`` of a result file: one, or one for each number of steps.

    Raises:
        ValueError: no such file, or it holds no texts.
    """
    key, hint = "--generation_path", "give a result of mode=cond_sample_eval_with_tc"
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(key, path, error.strerror or "cannot be read", hint) from error
    except ValueError as error:
        raise UserError(key, path, f"is no JSON ({error})", hint) from error
    runs = content.get("runs", [content]) if isinstance(content, dict) else []
    if not runs or not all(isinstance(run, dict) and _are_texts(run.get("generated_seqs")) for run in runs):
        raise UserError(key, path, "holds no list generated_seqs of texts", hint)
    return runs


def evaluate(
    path: str,
    human: Sequence[str],
    featurizer: Featurizer,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seq_len: int = 100,
    seeds: Sequence[int] = range(42, 47),
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """MAUVE of every run in a result file; written beside it as ``-mauve.json``.

    Args:
        human: the human texts, of ``seq_len`` tokens.
        tokenizer: by its tokens generated texts are cut to ``seq_len``, unless the file says that they are.
        seeds: of the k-means.
        about: what else the file shall say.

    Returns:
        What is written: the keys of ``mauve``, sizes and settings; ``runs`` of these where there are several.

    Raises:
        ValueError: fewer than two texts of a kind, or no such file.
    """
    runs, found = generated_runs(path), []
    kept_human = _not_empty(human, featurizer, "--human_path")
    features = featurizer(kept_human)
    for run in runs:
        texts = _cut(run, seq_len, tokenizer)
        kept = _not_empty(texts, featurizer, "--generation_path")
        settings = {
            "num_human": len(kept_human),
            "num_generated": len(kept),
            "empty_texts_left_out": len(human) - len(kept_human) + len(texts) - len(kept),
            "human_with_a_prefix_of_the_run": _shared(human, run.get("prefixes")),
            **{key: run[key] for key in ("steps", "predictor", "temperature", "checkpoint") if key in run},
            "featurizer": featurizer.name,
            "seq_len": seq_len,
        }
        found.append({**mauve(features, featurizer(kept), seeds), **settings, **(about or {})})
    written = found[0] if len(found) == 1 else {"runs": found}
    write_json(result_path(path), written)
    return written


def _not_empty(texts: Sequence[str], featurizer: Featurizer, key: str) -> list[str]:
    kept = [text for text in texts if featurizer.has_tokens(text)]
    if len(kept) < 2:
        raise UserError(key, f"{len(texts)} texts", f"{len(kept)} of them are not empty", "give more texts")
    return kept


def result_path(path: str) -> Path:
    """F.json -> F-mauve.json."""
    place = Path(path).expanduser()
    return place.with_name(f"{place.name.removesuffix('.json')}-mauve.json")


def _cut(run: dict[str, Any], seq_len: int, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The first ``seq_len`` tokens of the texts of a run, which says how many they have."""
    texts, have = run["generated_seqs"], run.get("seq_len", run.get("length"))
    if have is not None and have < seq_len:
        log.warning(
            "the generated texts have %d tokens, the human ones %d: use --seq_len %d", have, seq_len, have
        )
    if have is not None and have <= seq_len:
        return texts
    ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=seq_len)["input_ids"]
    return tokenizer.batch_decode(ids)


def _shared(human: Sequence[str], prefixes: list[str] | None) -> int | None:
    """How many human texts begin with a prefix of the run; None where it notes none."""
    if not prefixes:
        return None
    number = sum(text.startswith(tuple(prefixes)) for text in human)
    if not number:
        log.warning("no human text begins with a prefix of the run: other data, tokenizer or --length")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code (2: a mistake of the user, told in one line)."""
    setup_logging()
    options = _options(argv)
    try:
        result = _run(options)
    except UserError as error:
        message = " ".join(str(error).split())
        for theirs, ours in FLAGS.items():
            message = message.replace(theirs, ours)
        print(f"error: {message}", file=sys.stderr)
        return 2
    for run in result.get("runs", [result]):
        steps = f"steps {run['steps']}: " if "steps" in run else ""
        spread = "" if run["mauve_std"] is None else f" (seeds deviate by {run['mauve_std']:.4f})"
        sizes = f"{run['num_human']} human, {run['num_generated']} generated texts"
        print(f"{steps}MAUVE {run['mauve']:.4f}{spread}, {sizes}, {run['featurizer']}")
    print(f"-> {result_path(options.generation_path)}")
    return 0


def _run(options: argparse.Namespace) -> dict[str, Any]:
    generated_runs(options.generation_path)  # a wrong file is told before anything is loaded
    tokenizer = get_tokenizer(options.tokenizer)
    drawn = {name: getattr(options, name) for name in ("sample_num", "length", "seed")}
    human = human_texts(
        options.human_path, tokenizer, seq_len=options.seq_len, cache_dir=options.cache_dir, **drawn
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    featurizer = Featurizer(
        options.featurizer,
        local_files_only=not hub_reachable(),
        batch_size=options.batch_size,
        device=device,
    )
    return evaluate(
        options.generation_path,
        human,
        featurizer,
        tokenizer,
        seq_len=options.seq_len,
        seeds=range(options.seed, options.seed + options.num_seeds),
        about={"human": options.human_path or HUMAN, "tokenizer": options.tokenizer, **drawn},
    )


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="MAUVE between generated texts and human ones.")
    add = parser.add_argument
    add("--generation_path", required=True, metavar="F", help="result of mode=cond_sample_eval_with_tc")
    add("--human_path", help=f"text file, folder or .json instead of {HUMAN}")
    add("--sample_num", type=_positive, default=256, help="human texts (256)")
    add("--seq_len", type=_positive, default=100, help="tokens of a text, prefix included (100)")
    add("--seed", type=int, default=42, help="of the order of human texts, and the first of the k-means (42)")
    add("--num_seeds", type=_positive, default=5, help="k-means to average over (5)")
    add("--cache_dir", default="./cache/openwebtext", help="data.cache_dir (./cache/openwebtext)")
    add("--tokenizer", default="gpt2", help="of the blocks, the one of the generating model (gpt2)")
    add("--length", type=_positive, default=1024, help="tokens of a block, the model's length (1024)")
    add("--featurizer", default="gpt2-large", help="hub name or folder (gpt2-large)")
    add("--batch_size", type=_positive, default=8, help="texts that it sees at once; the result is the same")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
