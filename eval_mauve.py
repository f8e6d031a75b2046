"""MAUVE between generated texts and human ones: ``python eval_mauve.py --generation_path F``.

MAUVE (Pillutla et al., NeurIPS 2021) is the area under the curve of divergences between the two sets, whose
texts are features of a language model, quantised by k-means; 1: nothing tells them apart. The measure itself
is the library mauve-text; features are made here, of any model. Shapes: N texts, D features.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from data.batching import official_permutation, permutation
from data.decoding import RULES, decode, rule_of
from data.hub import hub_reachable
from data.prepare import PreprocessingConfig, prepare
from data.tokenizers import get_tokenizer
from errors import ABSENT, UserError, of_system
from models.featurizer import Featurizer
from reporting.runs import read_json, read_runs
from utils import get_logger, printable, setup_logging, well_formed, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = get_logger("mauve")

HUMAN = "openwebtext-valid"
SCORERS = ("-gpt2", "-llama3_1")  # which scorer judged a result, at the end of its name
SCALING = 5.0  # of divergences, the library's default
# What the libraries of this program call a setting -> the flag that sets it here.
FLAGS = {
    "data.tokenizer_name_or_path=": "--tokenizer=",
    "data.valid=": "--human_path=",
    "model.length=": "--length=",
    "cond_sampling.official_workers=": "--official_workers=",
}


def mauve(human: np.ndarray, generated: np.ndarray, seeds: Sequence[int]) -> dict[str, Any]:
    """MAUVE of features (N, D) and (M, D): the mean over ``seeds`` of its k-means, and what each seed gave.

    The number of clusters is the library's own choice: a tenth of the smaller set, at least 2. With few texts
    the measure depends on N and M; only values of equal N and M compare. Equal sets have exactly 1.
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
    each = [_area(one.divergence_curve) for one in found]
    return {
        "mauve": float(np.mean(each)),
        "mauve_std": float(np.std(each, ddof=1)) if len(each) > 1 else None,
        "mauve_by_seed": each,
        "seeds": list(seeds),
        "mauve_star": float(np.mean([_smoothed(one, len(human), len(generated)) for one in found])),
        "frontier_integral": float(np.mean([one.frontier_integral for one in found])),
        "num_buckets": int(found[0].num_buckets),
        "scaling_factor": SCALING,
        "mauve_text": version("mauve-text"),
    }


def _area(curve: np.ndarray) -> float:
    """The area under a divergence curve (n, 2), whose points run from (1, 0) to (0, 1).

    The library sorts them by each axis first. Where the sets are equal all points are (1, 1) but for
    rounding, and a sort that is not stable may put (1, 0) in front of them: it then gives 0.75. Sums of
    rounding are cut off.
    """
    return round(float(-np.trapezoid(curve[:, 1], curve[:, 0])), 12)


def _smoothed(found: Any, num_human: int, num_generated: int) -> float:
    """MAUVE* (Pillutla et al., JMLR 2023): the area with half a text more in every cluster."""
    from mauve.compute_mauve import get_divergence_curve_for_multinomials

    pairs = ((found.p_hist, num_human), (found.q_hist, num_generated))
    p, q = ((hist * number + 0.5) / (number + 0.5 * len(hist)) for hist, number in pairs)
    weights = np.linspace(1e-6, 1 - 1e-6, len(found.divergence_curve) - 2)
    return _area(get_divergence_curve_for_multinomials(p, q, weights, SCALING))


def human_texts(
    path: str | None,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sample_num: int,
    seq_len: int,
    length: int,
    seed: int,
    cache_dir: str,
    decoding: str = "default",
    more: int = 0,
    official_workers: int | None = None,
) -> list[str]:
    """``sample_num`` human texts: the first ``seq_len`` tokens, bos included, of packed blocks.

    The blocks come in the order of ``permutation(their number, seed, 0)``, in which
    mode=cond_sample_eval_with_tc takes its prefixes (with seed 42), so that each text begins with one.

    Args:
        path: None: the last 100,000 documents of OpenWebText; a text data file or folder, packed likewise; a
            .json file with a list of texts or a result with ``generated_seqs``, cut to ``seq_len`` tokens.
        length: tokens of a block.
        decoding: how blocks become texts, see ``data.decoding``.
        more: up to so many further texts follow, where there are more.
        official_workers: blocks and their order are those of the official program
            (``data.packing.map_batches``, ``numpy.random.permutation``) with so many workers.

    Raises:
        UserError: the texts cannot be read, or there are fewer.
    """
    ready = _ready_run(path)
    if ready is not None:
        texts = ready["generated_seqs"]
        rows = _drawn(len(texts), sample_num, seed, "texts", more, official_workers)
        return _cut({**ready, "generated_seqs": [texts[row] for row in rows]}, seq_len, tokenizer, "human")
    if seq_len > length:
        raise UserError("--seq_len", seq_len, f"blocks have {length} tokens", "raise --length")
    recipe = PreprocessingConfig(
        source=path or HUMAN,
        role="validation",
        length=length,
        wrap=True,
        insert_eos=True,
        eos="official",
        rules=Path(path).stem if path else "openwebtext",
        revision=None,
        cache_dir=Path(cache_dir).expanduser(),
        official_workers=official_workers,
    )
    blocks = prepare(recipe, tokenizer)
    rows = _drawn(len(blocks), sample_num, seed, f"blocks of {length} tokens", more, official_workers)
    return decode(tokenizer, blocks.fetch(rows)["input_ids"][:, :seq_len], decoding)


def _drawn(number: int, wanted: int, seed: int, what: str, more: int, official: int | None) -> np.ndarray:
    if wanted > number:
        hint = f"use --sample_num {number}, or more text"
        raise UserError("--sample_num", wanted, f"there are {number} human {what}", hint)
    order = permutation(number, seed, 0) if official is None else official_permutation(number, seed)
    return order[: wanted + more]


def _ready_run(path: str | None) -> dict[str, Any] | None:
    """The texts of a .json file that is a list of them or a result; None for all other sources."""
    if path is None or Path(path).suffix != ".json":
        return None
    key, hint = "--human_path", "give a text file or folder, a list of texts, or a result with one run"
    try:
        content = read_json(path, key=key, hint=hint)
    except UserError:
        return None  # one object a line, or no file: the reader of data sets says more
    if isinstance(content, dict) and ("generated_seqs" in content or "runs" in content):
        _, runs = read_runs(path, key=key, hint=hint)
        if len(runs) > 1:
            raise UserError(key, path, f"holds the texts of {len(runs)} runs", hint)
        (content,) = runs
    elif isinstance(content, list) and all(isinstance(text, str) for text in content):
        content = {"generated_seqs": content}
    else:
        return None
    return {**content, "generated_seqs": [well_formed(text) for text in content["generated_seqs"]]}


def generated_runs(path: str) -> list[dict[str, Any]]:
    """The objects with ``generated_seqs`` of a result file: one, or one for each number of steps.

    Raises:
        UserError: no such file, or it holds no texts.
    """
    key, hint = "--generation_path", "give a result of mode=cond_sample_eval_with_tc"
    _, runs = read_runs(path, key=key, hint=hint)
    for run in runs:
        if not run["generated_seqs"]:
            raise UserError(key, path, "holds no list generated_seqs of texts", hint)
        run["generated_seqs"] = [well_formed(text) for text in run["generated_seqs"]]
        run["prefixes"] = run.get("prefixes") and [well_formed(text) for text in run["prefixes"]]
    return runs


def decoding_of(run: Mapping[str, Any]) -> str:
    """How the texts of a run were decoded; results that do not say so are from before there was a choice."""
    return run.get("decoding") or "raw"


def evaluate(
    path: str,
    human: Sequence[str],
    featurizer: Featurizer,
    tokenizer: PreTrainedTokenizerBase,
    *,
    others: Sequence[str] | None = None,
    seq_len: int = 100,
    seeds: Sequence[int] = range(42, 47),
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """MAUVE of every run in a result file; written beside it as ``-mauve.json``.

    Args:
        human: the human texts, of ``seq_len`` tokens.
        tokenizer: by its tokens generated texts are cut to ``seq_len``, unless the file says that they are.
        others: further human texts; as many of them as a run has texts give its ceiling. None: no ceiling.
        seeds: of the k-means.
        about: what else the file shall say.

    Returns:
        What is written: the keys of ``mauve``, of ``Ceiling``, sizes and settings; ``runs`` of these where
        there are several.

    Raises:
        UserError: fewer than two texts of a kind, or no such file.
    """
    runs, found = generated_runs(path), []
    kept_human = _not_empty(human, featurizer, "--human_path")
    features = featurizer(kept_human)
    ceiling = Ceiling(features, others, featurizer, seeds)
    for run in runs:
        texts = _cut(run, seq_len, tokenizer, "generated")
        kept = _not_empty(texts, featurizer, "--generation_path")
        settings = {
            **ceiling.of(len(kept)),
            "num_human": len(kept_human),
            "num_generated": len(kept),
            "empty_texts_left_out": len(human) - len(kept_human) + len(texts) - len(kept),
            "human_with_a_prefix_of_the_run": _shared(human, run.get("prefixes")),
            **{key: run[key] for key in ("steps", "predictor", "temperature", "checkpoint") if key in run},
            "decoding": run.get("decoding"),
            "featurizer": featurizer.name,
            "seq_len": seq_len,
        }
        found.append({**mauve(features, featurizer(kept), seeds), **settings, **(about or {})})
    _warn_of_unequal_numbers(found)
    written = found[0] if len(found) == 1 else {"runs": found}
    write_json(result_path(path), written)
    return written


class Ceiling:
    """What human texts reach against other human texts: MAUVE stays below 1 where the sets are of one
    distribution, and by how much depends on their numbers.

    Args:
        features: (N, D) of the human texts that the generated ones are compared with.
        others: other human texts; None: no ceiling is wanted.
    """

    def __init__(
        self, features: np.ndarray, others: Sequence[str] | None, featurizer: Featurizer, seeds: Sequence[int]
    ) -> None:
        self.features, self.seeds, self.featurizer = features, seeds, featurizer
        self.wanted = others is not None
        self.others = [text for text in others or () if featurizer.has_tokens(text)]
        self._known: dict[int, dict[str, Any]] = {}

    def of(self, number: int) -> dict[str, Any]:
        """``mauve_ceiling`` and its spread for ``number`` texts; None and a reason where that cannot be."""
        reason = f"{number} other human texts are needed, there are {len(self.others)}"
        if not self.wanted or len(self.others) < number:
            reason = reason if self.wanted else "not asked for"
            return {"mauve_ceiling": None, "mauve_ceiling_std": None, "mauve_ceiling_reason": reason}
        if number not in self._known:
            found = mauve(self.features, self.featurizer(self.others[:number]), self.seeds)
            self._known[number] = {
                "mauve_ceiling": found["mauve"],
                "mauve_ceiling_std": found["mauve_std"],
                "mauve_ceiling_reason": None,
            }
        return self._known[number]


def _warn_of_unequal_numbers(found: Sequence[Mapping[str, Any]]) -> None:
    for human, generated in dict.fromkeys((run["num_human"], run["num_generated"]) for run in found):
        if human != generated:
            log.warning(
                "%d human texts against %d generated ones: compare with values of the same two numbers, "
                "and with mauve_ceiling",
                human,
                generated,
            )


def _not_empty(texts: Sequence[str], featurizer: Featurizer, key: str) -> list[str]:
    kept = [text for text in texts if featurizer.has_tokens(text)]
    if len(kept) < 2:
        raise UserError(key, f"{len(texts)} texts", f"{len(kept)} of them are not empty", "give more texts")
    return kept


def result_path(path: str) -> Path:
    """F.json -> F-mauve.json; as officially, the scorer at the end of F (-gpt2, -llama3_1) gives way."""
    place = Path(path).expanduser()
    name = place.name.removesuffix(".json")
    for scorer in SCORERS:
        name = name.removesuffix(scorer) or name
    return place.with_name(f"{name}-mauve.json")


def _cut(run: Mapping[str, Any], seq_len: int, tokenizer: PreTrainedTokenizerBase, side: str) -> list[str]:
    """The first ``seq_len`` tokens of the texts of a run, which says how many they have."""
    texts, have = run["generated_seqs"], run.get("seq_len") or run.get("length")
    if have is not None and have < seq_len:
        log.warning(
            "the %s texts have %d tokens, fewer than --seq_len %d: use --seq_len %d",
            side,
            have,
            seq_len,
            have,
        )
    if have is not None and have <= seq_len:
        return texts
    ids = tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
    cut = decode(tokenizer, [one[:seq_len] for one in ids], decoding_of(run))
    # A text that is short enough stays as it is: not every tokenizer gives back what it read.
    return [new if len(one) > seq_len else old for one, old, new in zip(ids, texts, cut, strict=True)]


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
    except (UserError, OSError) as error:
        shown = error if isinstance(error, UserError) else of_system(error)
        if shown is None:
            raise
        message = " ".join(str(shown).split())
        for theirs, ours in FLAGS.items():
            message = message.replace(theirs, ours)
        print(f"error: {printable(message)}", file=sys.stderr)
        return 2
    for run in result.get("runs", [result]):
        _print(run)
    print(f"-> {result_path(options.generation_path)}")
    return 0


def _print(run: Mapping[str, Any]) -> None:
    """The official line, and one with what it has to be read with."""
    steps = f"steps {run['steps']}: " if run.get("steps") else ""
    print(f"{steps}MAUVE: {run['mauve']:.4f}")
    ceiling, spread = run["mauve_ceiling"], run["mauve_std"]
    words = [
        f"no ceiling: {run['mauve_ceiling_reason']}"
        if ceiling is None
        else f"human against other human texts of these numbers: {ceiling:.4f}",
        *([] if spread is None else [f"seeds deviate by {spread:.4f}"]),
        f"{run['num_human']} human, {run['num_generated']} generated texts of {run['seq_len']} tokens",
        f"{run['num_buckets']} clusters",
        printable(run["featurizer"]),
    ]
    print(f"  ({'; '.join(words)})")


def _run(options: argparse.Namespace) -> dict[str, Any]:
    runs = generated_runs(options.generation_path)  # a wrong file is told before anything is loaded
    tokenizer = get_tokenizer(options.tokenizer)
    rule = rule_of(tokenizer, options.decoding or decoding_of(runs[0]))
    if any(decoding_of(run) != rule for run in runs):
        log.warning("texts of the file were not decoded as the human ones are: %s", rule)
    drawn = {name: getattr(options, name) for name in ("sample_num", "length", "seed", "official_workers")}
    human = human_texts(
        options.human_path,
        tokenizer,
        seq_len=options.seq_len,
        cache_dir=options.cache_dir,
        decoding=rule,
        more=max(len(run["generated_seqs"]) for run in runs) if options.ceiling else 0,
        **drawn,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    featurizer = Featurizer(
        options.featurizer,
        local_files_only=not hub_reachable(),
        batch_size=options.batch_size,
        device=device,
        max_tokens=options.seq_len,
    )
    return evaluate(
        options.generation_path,
        human[: options.sample_num],
        featurizer,
        tokenizer,
        others=human[options.sample_num :] if options.ceiling else None,
        seq_len=options.seq_len,
        seeds=range(options.seed, options.seed + options.num_seeds),
        about={
            "human": options.human_path or HUMAN,
            "human_decoding": None if _ready_run(options.human_path) is not None else rule,
            "tokenizer": options.tokenizer,
            **drawn,
        },
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
    add("--decoding", choices=RULES, help="of human texts, see eval.decoding (as the file says of its texts)")
    add("--featurizer", default="gpt2-large", help="hub name or folder (gpt2-large)")
    add("--batch_size", type=_positive, default=8, help="texts that it sees at once; the result is the same")
    add("--official_workers", type=_positive, metavar="N", help="the official program's human texts, as N "
        "processes prepare them there (its eval_mauve.py: 8)")  # fmt: skip
    add("--ceiling", action=argparse.BooleanOptionalAction, default=True, help="also MAUVE of human against "
        "other human texts of these numbers")  # fmt: skip
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return number


if __name__ == "__main__":
    sys.exit(main())
