"""A sampler is one file: help, checks and tests find it, and config reads what is registered."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config.run import all_keys
from config.sampling import REMOVALS, Declared, declared_samplers, orders, own_sections
from samplers import REGISTRY
from samplers import base as samplers_base

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
NEW_FILE = '''"""The likeliest position first, with a floor below which nothing else joins it."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from samplers.base import Sampler, State, chunks, setting
from samplers.draws import Draws
from samplers.registry import register


@dataclass(frozen=True)
class Settings:
    floor: float = setting(2.0, "probability above which positions join the likeliest", above=0)


@register(
    "highest_first",
    claim="highest probability first",
    exact="limit",
    own_order=True,
    on_grid=False,
    removals=("ancestral",),
    asks_all=True,
)
class HighestFirst(Sampler):
    own: Settings

    def pending(self, step: int, state: State) -> Tensor:
        return (state.x == self.mask_id).any(-1)

    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        is_masked, prediction = state.x == self.mask_id, self.predict(state)
        best = torch.full(state.x.shape, -1.0, dtype=torch.float64)
        for rows, columns in chunks(is_masked, prediction.vocab_size):
            flat = rows * state.x.shape[1] + columns
            best[rows, columns] = prediction.at(flat).double().exp().amax(-1)
        first = torch.zeros_like(is_masked).scatter_(1, best.argmax(-1, keepdim=True), True)
        stays = is_masked & ~first & (best <= self.own.floor)
        s = state.t * stays.sum(-1) / is_masked.sum(-1)
        state = self.unmask(step, state, is_masked & ~stays, prediction, draws)
        resets = stays & (draws.actions(step, stays.shape[1]) < 0.5)
        return self.refresh(step, replace(state, t=s), resets, draws), is_masked.any(-1)
'''


def test_config_reads_what_the_files_register() -> None:
    """Names, families, orders and all traits; and the keys of samplers' own with type and default."""
    traits = {field.name for field in dataclasses.fields(samplers_base.Traits)}
    read: dict[tuple[str, str, str], Declared] = {}
    for one in declared_samplers():
        read |= {(name, family, one.order): one for name in one.names for family in one.families}
    assert set(read) == set(REGISTRY) and REMOVALS == samplers_base.REMOVALS
    for entry, cls in REGISTRY.items():
        assert all(getattr(read[entry], name) == getattr(cls.traits, name) for name in traits), entry
        assert read[entry].file == cls.__module__.rsplit(".", 1)[-1]
        section = own_sections().get(read[entry].file)
        assert (section is None) == (cls.own_settings is None)
        if section is not None and cls.own_settings is not None:
            keys = {field.name: field.default for field in dataclasses.fields(cls.own_settings)}
            assert keys == {field.name: field.default for field in dataclasses.fields(section)}
            assert all(f"sampling.{read[entry].file}.{name}" in all_keys() for name in keys)
    assert set(orders()) == {order for _, _, order in REGISTRY}
    assert all(2 <= len(one.claim.replace(",", "").split()) <= 6 for one in declared_samplers())


def copy_of_the_program(folder: Path) -> Path:
    """The repository with samplers/ and config/ that can be written to."""
    for path in ROOT.iterdir():
        if path.name in ("samplers", "config", "main.py", "tests"):
            continue
        (folder / path.name).symlink_to(path)
    shutil.copy(ROOT / "main.py", folder / "main.py")
    for name in ("samplers", "config"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests").mkdir()
    for name in ("worlds.py", "test_sampler_mechanics.py", "test_samplers.py", "golden"):
        (folder / "tests" / name).symlink_to(ROOT / "tests" / name)
    return folder


def test_a_new_file_is_found_by_help_checks_and_tests(tmp_path: Path) -> None:
    folder = copy_of_the_program(tmp_path)
    (folder / "samplers" / "highest.py").write_text(NEW_FILE)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True
        )

    shown = run("main.py", "--help").stdout
    assert "highest_first              highest probability first (in the limit; absorbing)" in shown
    assert "sampling.highest.floor=2.0: probability above which positions join the likeliest" in shown
    for words, complaint in (
        (
            ("sampling.noise_removal=greedy",),
            "error: sampling.noise_removal=greedy: sampling.pre",
        ),
        (
            ("sampling.order=spread",),
            "error: sampling.order=spread: sampling.predictor=h",
        ),
        (("sampling.highest.floor=0",), "error: sampling.highest.floor=0.0: out of range; give a number > 0"),
    ):
        done = run("main.py", "algo=mdlm", "sampling.predictor=highest_first", *words)
        assert done.returncode == 2 and done.stderr.startswith(complaint), done.stderr
    tests = ["tests/test_sampler_mechanics.py", "tests/test_samplers.py"]
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, "-k", "highest_first", "-rA")
    assert done.returncode == 0, done.stdout[-3000:]
    for name in ("replay_and_batch_layout", "a_sampler_may_rewrite_its_own", "exact_denoiser_gives_the_data"):
        assert f"{name}[highest_first" in done.stdout
