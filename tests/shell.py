"""The scripts of the experiments as tests see them: what each prints with DRY_RUN=1, as words."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(
    str(path.relative_to(ROOT / "scripts").with_suffix(""))
    for suite in ("lm1b", "owt", "owt_large")
    for path in (ROOT / "scripts" / suite).glob("*.sh")
)
PYTHON = "no-python"  # that nothing can run which is to be printed only
CLUSTER = ("SLURM_", "NODE_", "NNODES", "NGPUS", "MASTER_", "CUDA_VISIBLE_DEVICES")


def shell(*words: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run bash in ``folder``: on one device of no cluster, unless ``environment`` says otherwise."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(CLUSTER)}
    settings = {**clean, "NGPUS": "1", "PYTHON": PYTHON, **environment}
    return subprocess.run(["bash", *words], cwd=folder, env=settings, capture_output=True, text=True)


def dry_run(script: str, *words: str, **environment: str) -> list[list[str]]:
    """The commands that ``scripts/<script>.sh`` would run, each as its words."""
    done = shell(f"scripts/{script}.sh", *words, DRY_RUN="1", **environment)
    assert done.returncode == 0 and not done.stderr, f"{script}: {done.stderr}"
    return [shlex.split(line) for line in done.stdout.splitlines()]


def of_each(flag: str = "") -> dict[str, list[str]]:
    """The lines that each script prints with DRY_RUN=1 and this argument."""
    loop = 'flag=$1; shift; for s; do echo "@$s"; bash "scripts/$s.sh" $flag || echo "FAILED $s" >&2; done'
    done = shell("-c", loop, "loop", flag, *SCRIPTS, DRY_RUN="1")
    assert not done.stderr, done.stderr
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("@"):
            lines = found.setdefault(line[1:], [])
        else:
            lines.append(line)
    return found
