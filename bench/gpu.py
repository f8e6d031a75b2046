"""What one GPU does with this program: kernels, losses, speed, memory, in some ten minutes (not timed yet).

    python bench/gpu.py                       # everything; results in bench/results/gpu_<name>.md and .json
    python bench/gpu.py --quick               # one vocabulary, fewer algorithms
    python bench/gpu.py --sections training,head --name a100
    python bench/gpu.py --device cpu --tiny   # toy size: does the script itself work

Weights and ids are random: no data, no network. Sections (bench/gpu_sections.py): attention (backends against
the plain formula), precision (bf16 losses against float32), compile (off and on), training (tokens a second,
MFU, peak memory beside mode=plan's), sampling, head (chunk sizes). What fails, out of memory for instance, is
noted in its row and the rest goes on; files are written after every section. Then: pytest -m gpu.
"""

from __future__ import annotations

import argparse
import platform
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_sections import SECTIONS, Row, Setting, guarded  # puts the repository on the path

from models.precision import allow_tf32
from utils import atomic_open, write_json

RESULTS = Path(__file__).resolve().parent / "results"
# Dense bf16 TFLOP/s of data sheets, by what the device's name contains.
PEAKS = {"H100 PCIe": 756, "H100": 989, "H200": 989, "GH200": 989, "B200": 2250, "A100": 312, "A800": 312,
         "L40S": 362, "A10G": 70, "A40": 150, "RTX 4090": 165, "RTX 3090": 71, "A6000": 155}  # fmt: skip


def device_name(device: str) -> str:
    """In words."""
    return torch.cuda.get_device_name() if device == "cuda" else platform.machine()


def peak_of(name: str) -> float | None:
    """The peak of a device by its name; None: not in the table."""
    return next((float(peak) for part, peak in PEAKS.items() if part in name), None)


def table(rows: list[Row]) -> str:
    """Markdown; rows may have different columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_shown(row.get(name, "")) for name in columns] for row in rows)]
    lines = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([lines[0], "|---" * len(columns) + "|", *lines[1:]])


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value).replace("|", "/")


def markdown(about: dict[str, Any], results: dict[str, list[Row]]) -> str:
    """The whole result."""
    parts = [f"python bench/gpu.py: {', '.join(f'{key} {value}' for key, value in about.items())}"]
    for name, rows in results.items():
        what = SECTIONS[name].__doc__.splitlines()[0]
        parts += [f"## {name}", what, table(rows) if rows else "nothing"]
    return "\n\n".join(parts) + "\n"


def run(setting: Setting, names: list[str], about: dict[str, Any], target: Path) -> dict[str, list[Row]]:
    """All sections, one after the other; ``target`` without suffix gets .md and .json."""
    results: dict[str, list[Row]] = {}
    for name in names:
        began, rows = time.perf_counter(), results.setdefault(name, [])

        def section(name: str = name, rows: list[Row] = rows) -> Row:
            for row in SECTIONS[name](setting):
                rows.append(row)
                print(f"{name}: {', '.join(f'{k} {_shown(v)}' for k, v in row.items())}", flush=True)
            return {}

        if failed := guarded(section):
            rows.append(failed)
            print(f"{name}: {failed['error']}", flush=True)
        about[f"{name} s"] = round(time.perf_counter() - began)
        with atomic_open(target.with_suffix(".md")) as file:
            file.write(markdown(about, results))
        write_json(target.with_suffix(".json"), {"about": about, "results": results})
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one vocabulary, fewer algorithms")
    parser.add_argument("--tiny", action="store_true", help="toy sizes")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--sections", default=",".join(SECTIONS), help="some of them, separated by commas")
    parser.add_argument("--name", help="of the result files; by default the device's")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the result files")
    parser.add_argument("--tflops", type=float, help="peak of the device in bf16, if its name is not known")
    args = parser.parse_args()
    names = args.sections.split(",")
    if unknown := set(names) - set(SECTIONS):
        parser.error(f"--sections: {', '.join(sorted(unknown))}: unknown; some of {', '.join(SECTIONS)}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device; --device cpu --tiny tries the script itself")
    name = device_name(args.device)
    setting = Setting(args.device, args.tiny, args.quick, args.tflops or peak_of(name))
    if args.device == "cuda":
        allow_tf32()  # as training does
    about = {"device": name, "torch": torch.__version__, "python": platform.python_version()}
    target = args.output / f"gpu_{args.name or re.sub(r'[^a-z0-9]+', '_', name.lower())}"
    run(setting, names, about, target)
    print(f"{target.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
