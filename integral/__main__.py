"""``python -m integral --vocab_size 50258``: write the table of P(gamma) for a vocabulary."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from integral.table import KEY, Table, write_table

FOLDER = Path(__file__).resolve().parent


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The arguments; a wrong one ends the program with one line."""
    parser = argparse.ArgumentParser(prog="python -m integral", description=__doc__)
    parser.add_argument("--vocab_size", type=int, required=True, help="len(tokenizer): 50258, 30522, ...")
    parser.add_argument("--path", type=Path, help="of the file; integral/<vocab_size>.npz when left out")
    parser.add_argument("--num_points", type=int, default=100_000)
    parser.add_argument("--gamma_min", type=float, default=-5.0)
    parser.add_argument("--gamma_max", type=float, default=-1.0)
    args = parser.parse_args(words)
    if args.vocab_size < 2:
        parser.error(f"--vocab_size={args.vocab_size}: fewer than two tokens; give len(tokenizer)")
    if args.num_points < 2:
        parser.error(f"--num_points={args.num_points}: too few; give 100000")
    if not args.gamma_min < args.gamma_max:
        parser.error(f"--gamma_min={args.gamma_min:g}: not below --gamma_max={args.gamma_max:g}; lower it")
    return args


def main(words: Sequence[str] | None = None) -> int:
    """Compute and write the table, which takes seconds; returns the exit code."""
    args = parse(words)
    path = args.path or FOLDER / f"{args.vocab_size}.npz"
    started = time.monotonic()
    table = Table.of(args.vocab_size, args.gamma_min, args.gamma_max, args.num_points)
    try:
        write_table(path, table)
    except OSError as error:
        print(f"error: --path={path}: {error.strerror}; choose another place", file=sys.stderr)
        return 2
    print(f"{path}: {args.num_points} points in {time.monotonic() - started:.0f} s; use {KEY}={path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
