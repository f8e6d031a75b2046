"""How fast text becomes blocks of tokens: the program's preparation against ``datasets.map``.

    python bench/data.py --tokenizer gpt2 --texts folder/*.txt     # writes bench/results/data_2cores.md

Both read the same parquet file (a document a row), tokenise, put an eos behind each document, cut blocks of
--length and write them to disk; each run has a process of its own and a fresh cache. The other side is what
training scripts usually do: ``map(tokenize, batched=True, num_proc=cores)``, then ``map(group_texts, ...)``.
Documents are the paragraphs of the text files, joined up to --characters each, the whole --copies times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data.prepare import PreprocessingConfig, prepare
from data.tokenizers import get_tokenizer
from utils import atomic_open


def ours(file: str, folder: str, tokenizer: Any, length: int, cores: int) -> int:
    """Blocks of the program; it takes as many threads as there are cores."""
    recipe = PreprocessingConfig(file, "train", length, True, True, "official", "none", None, Path(folder))
    return len(prepare(recipe, tokenizer))


def mapped(file: str, folder: str, tokenizer: Any, length: int, cores: int) -> int:
    """Blocks of ``datasets.map`` with a process a core."""
    import datasets

    datasets.disable_progress_bars()
    texts = datasets.load_dataset("parquet", data_files=file, split="train", cache_dir=folder)
    bos, eos, inner = tokenizer.bos_token_id, tokenizer.eos_token_id, length - 2

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        ids = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*document, eos] for document in ids]}

    def group_texts(batch: dict[str, list]) -> dict[str, list]:
        joined = list(itertools.chain.from_iterable(batch["input_ids"]))
        starts = range(0, len(joined) - inner + 1, inner)
        return {"input_ids": [[bos, *joined[start : start + inner], eos] for start in starts]}

    options = {"batched": True, "num_proc": cores}
    tokens = texts.map(tokenize, remove_columns=texts.column_names, **options)
    return len(tokens.map(group_texts, **options))


SIDES: dict[str, Callable[..., int]] = {"ours": ours, "datasets.map": mapped}


def measure(side: str, file: str, tokenizer: str, length: int, cores: int) -> dict[str, float]:
    """One run in this process: seconds, processor seconds, and peak memory (MiB, with the largest child)."""
    loaded = get_tokenizer(tokenizer)
    loaded("imports and what is made on first use are not what is measured")
    import datasets  # noqa: F401
    from pyarrow import parquet  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        before, start = _usage(), time.perf_counter()
        blocks = SIDES[side](file, folder, loaded, length, cores)
        seconds = time.perf_counter() - start
    after = _usage()
    return {
        "blocks": blocks,
        "seconds": seconds,
        "processor": after[0] - before[0],
        "above": after[1] - before[1],
    }


def _usage() -> tuple[float, float]:
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    seconds = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    return seconds, (own.ru_maxrss + children.ru_maxrss) / 1024


def write_documents(paths: Sequence[str], target: Path, characters: int, copies: int) -> int:
    """A parquet file of documents; returns their characters."""
    import pyarrow as pa
    from pyarrow import parquet

    documents, parts = [], []
    for path in paths:
        for paragraph in Path(path).read_text(encoding="utf-8").split("\n\n"):
            parts.append(paragraph)
            if sum(map(len, parts)) >= characters:
                documents.append("\n\n".join(parts))
                parts = []
        documents.append("\n\n".join(parts))
        parts = []
    parquet.write_table(pa.table({"text": documents * copies}), target, row_group_size=1000)
    return sum(map(len, documents)) * copies


def table(results: dict[tuple[str, int], list[dict[str, float]]], length: int) -> str:
    """Markdown: medians, and the smallest and largest speed."""
    lines = [
        "| side | million tokens | tokens a second (range) | tokens a processor second | memory (MiB) |",
        "|---|---|---|---|---|",
    ]
    for (side, _), runs in results.items():
        tokens = runs[0]["blocks"] * (length - 2)
        speeds = sorted(tokens / run["seconds"] for run in runs)
        each = statistics.median(tokens / run["processor"] for run in runs)
        spread = f"{statistics.median(speeds):,.0f} ({speeds[0]:,.0f}, {speeds[-1]:,.0f})"
        memory = statistics.median(run["above"] for run in runs)
        lines.append(f"| {side} | {tokens / 1e6:.1f} | {spread} | {each:,.0f} | {memory:,.0f} |")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Measure both sides in turn and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokenizer", required=True, help="hub name or folder")
    parser.add_argument("--texts", nargs="+", required=True, help="text files")
    parser.add_argument("--characters", type=int, default=4000, help="of a document")
    parser.add_argument("--copies", type=int, nargs="+", default=[16, 64], help="sizes of the data")
    parser.add_argument("--length", type=int, default=1024, help="of a block")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", default="bench/results/data_2cores.md")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if options.side:  # the process of one run
        arguments = (options.texts[0], options.tokenizer, options.length, options.cores)
        print(json.dumps(measure(options.side, *arguments)))
        return
    results: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for copies in options.copies:
            file = Path(folder) / f"{copies}.parquet"
            characters = write_documents(options.texts, file, options.characters, copies)
            print(f"{characters:,} characters", flush=True)
            for side in list(SIDES) * options.repeats:
                results.setdefault((side, copies), []).append(_in_a_process(side, file, options))
                print(side, results[side, copies][-1], flush=True)
    kind = Path(options.tokenizer).name
    text = (
        f"python bench/data.py: {options.cores} cores, tokenizer {kind}, blocks of {options.length}, "
        f"{options.repeats} runs in turn (medians)\n\n{table(results, options.length)}\n\n"
        "Memory: peak above that after the imports, of the process and its largest child together.\n"
    )
    with atomic_open(options.output) as output:
        output.write(text)
    print(text)


def _in_a_process(side: str, file: Path, options: argparse.Namespace) -> dict[str, float]:
    words = ["--side", side, "--texts", str(file), "--tokenizer", options.tokenizer]
    words += ["--length", str(options.length), "--cores", str(options.cores)]
    available = sorted(os.sched_getaffinity(0))[: options.cores]
    done = subprocess.run(
        [sys.executable, __file__, *words],
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, available),
    )
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
