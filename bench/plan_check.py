"""Does mode=plan predict what a training step takes? Peak memory of real steps on a CPU against its formulas.

    python bench/plan_check.py [--quick] [--output bench/results/plan_check_2cores.md]

Each case runs in a process of its own: three optimizer steps as training makes them (loss, backward,
clipping, AdamW, averages), over random ids. Measured is the highest resident memory above that after the
imports and the steps of a tiny network. The allocator is told to give every large block back at once
(MALLOC_MMAP_THRESHOLD_), so that the system sees what lives. On a CPU nothing is kept in reserve.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import sys
from pathlib import Path

import torch
from steps import Training, configuration  # puts the repository on the path

from tasks.plan import build_without_memory, planned
from utils import atomic_open

GIB = 2**30
STEPS = 3

# hidden size, blocks, heads, length, sequences, vocabulary
SIZES = {
    "256 x 4": (256, 4, 4, 128, 8, 30522),
    "512 x 8": (512, 8, 8, 256, 8, 30522),
    "384 x 12": (384, 12, 6, 512, 8, 50258),
}
QUICK = {"64 x 2": (64, 2, 4, 64, 16, 20000)}
ALGORITHMS = ("mdlm", "imdm", "im-sdtt")


def overrides(algo: str, size: tuple[int, ...], precision: str, checkpointing: bool) -> list[str]:
    """The command line of a case."""
    hidden, blocks, heads, length, rows, _ = size
    return [
        "mode=plan", f"algo={algo}", "model=small", f"model.hidden_size={hidden}",
        f"model.n_blocks={blocks}", f"model.n_heads={heads}", f"model.length={length}",
        f"loader.global_batch_size={rows}", f"trainer.precision={precision}",
        f"training.activation_checkpointing={checkpointing}", "trainer.accelerator=cpu", "trainer.devices=1",
    ]  # fmt: skip


def predict(words: list[str], vocab: int) -> dict[str, int]:
    """Bytes by part, as mode=plan has them."""
    cfg = configuration(words, vocab)
    rows = cfg.loader.global_batch_size
    return planned(cfg, build_without_memory(cfg), devices=1, rows=rows, passes=1)["memory"]


def measure(words: list[str], vocab: int) -> int:
    """Peak bytes of training steps above the imports, and what a tiny network loads, in this process."""
    train([*words, "model.hidden_size=32", "model.n_blocks=1", "model.n_heads=2"], 99)
    before = resident("VmRSS")
    train(words, vocab)
    return resident("VmHWM") - before


def train(words: list[str], vocab: int) -> None:
    """Some optimizer steps."""
    training = Training(configuration(words, vocab))
    for step in range(STEPS):
        training.step(step)


def resident(field: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


def run_case(words: list[str], vocab: int) -> int:
    """``measure`` in a process of its own, forked before PyTorch computed anything here."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(measure(words, vocab)))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError(f"this case failed: {' '.join(words)}") from None
    finally:
        process.join()


def compare(sizes: dict[str, tuple[int, ...]], precisions: tuple[str, ...]) -> list[dict]:
    """All cases, printed as they come."""
    found = []
    for name, size in sizes.items():
        for algo in ALGORITHMS:
            for precision in precisions:
                for checkpointing in (False, True):
                    words = overrides(algo, size, precision, checkpointing)
                    parts, measured = predict(words, size[5]), run_case(words, size[5])
                    case = {"size": name, "batch": f"{size[4]} x {size[3]}", "vocabulary": size[5]}
                    case |= {"algo": algo, "precision": precision, "checkpointing": checkpointing}
                    found.append(case | {"predicted": sum(parts.values()), "measured": measured})
                    print(row(found[-1]), flush=True)
    return found


def row(case: dict) -> str:
    """A line of the table."""
    return (
        f"| {case['algo']} | {case['size']} | {case['batch']} | {case['vocabulary']:,} | "
        f"{case['precision']} | {'yes' if case['checkpointing'] else 'no'} | {case['predicted'] / GIB:.2f} | "
        f"{case['measured'] / GIB:.2f} | {case['predicted'] / case['measured'] - 1:+.0%} |"
    )


def report(cases: list[dict]) -> str:
    """The table, and how far off the predictions are."""
    errors = [abs(case["predicted"] / case["measured"] - 1) for case in cases]
    head = ("algorithm", "width x blocks", "batch", "ids", "precision", "checkpointing")
    head += ("predicted GiB", "measured GiB", "error")
    return "\n".join(
        [
            f"python bench/plan_check.py ({os.cpu_count()} cores, {platform.machine()}, torch "
            f"{torch.__version__}): peak memory of optimizer steps, above that after the imports",
            "",
            f"| {' | '.join(head)} |",
            "|---" * len(head) + "|",
            *map(row, cases),
            "",
            f"Mean error {sum(errors) / len(errors):.0%}, largest {max(errors):.0%} ({len(cases)} cases).",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small size in float32")
    parser.add_argument("--output", help="markdown file for the table")
    args = parser.parse_args()
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # read when a process starts
        os.environ.update(MALLOC_MMAP_THRESHOLD_="65536", MALLOC_TRIM_THRESHOLD_="65536")
        os.execv(sys.executable, [sys.executable, *sys.argv])
    cases = compare(QUICK, ("32",)) if args.quick else compare(SIZES, ("32", "bf16"))
    text = report(cases)
    if args.output:
        with atomic_open(args.output) as file:
            file.write(text)
    print(text.splitlines()[-1])


if __name__ == "__main__":
    main()
