"""The files of pairs: two commands at once, kills, full disks, damage, official folders."""

from __future__ import annotations

import errno
import fcntl
import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from file_operations import Killed, content, kill_before, watch
from test_reflow import LENGTH, SYMBOLS, arrays, checked, maker, reader
from torch import Tensor

from data.reflow import FILES, MANIFEST, ReflowDataset
from data.reflow_parts import PairStore
from dataloader import get_tokenizer, get_valid_dataloader
from errors import UserError
from tasks import MODES
from tasks.reflow_pairs import PairMaker
from tasks.setup import build_algorithm

ROWS = 6
Filler = Callable[..., None]


@functools.cache
def _maker(size: int) -> PairMaker:
    return maker("algo=imdm", f"reflow.num_reflow_samples={ROWS}", f"loader.eval_batch_size={size}")


@functools.cache
def _manifest() -> dict[str, Any]:
    return _maker(2).describe()


def _rows(rows: Tensor) -> dict[str, np.ndarray]:
    """Rows that nobody takes for another, in the place of the network's."""
    numbers = rows.numpy()
    x0 = (numbers[:, None] >> np.arange(LENGTH)) % SYMBOLS
    return {
        "xt": np.where(x0 == 1, SYMBOLS, x0).astype(np.int32),
        "x0": x0.astype(np.int32),
        "t": (numbers + 1) / 10,
        "seed": 1 + numbers,
        "nfe": numbers,
    }


@functools.cache
def _reader() -> Any:
    return reader(Path("pairs"))


def read_in_training(folder: Path) -> None:
    cfg = _reader()
    cfg.reflow.save_path = str(folder)
    checked(cfg)


@pytest.fixture
def fill(monkeypatch: pytest.MonkeyPatch) -> Filler:
    """Make six cheap pairs in a folder, two at a time, as a command does."""
    monkeypatch.setattr(PairMaker, "make", lambda self, rows: _rows(rows))

    def _fill(folder: Path, size: int = 2) -> None:
        _maker(size).fill(PairStore(folder, _manifest()))

    return _fill


@pytest.fixture
def whole(fill: Filler, tmp_path: Path) -> dict[str, bytes]:
    """What one undisturbed command leaves behind."""
    fill(tmp_path / "whole")
    found = content(tmp_path / "whole")
    assert set(found) == {*FILES.values(), MANIFEST}
    assert all(np.array_equal(v, _rows(torch.arange(ROWS))[k]) for k, v in arrays(tmp_path / "whole").items())
    return found


# Two commands at once -------------------------------------------------------------------------------


class Turns:
    """Lets two threads run by a plan: (who, how many file operations), the last of each without limit."""

    def __init__(self, plan: list[tuple[int, float]]) -> None:
        self.plan, self.changed = [list(entry) for entry in plan], threading.Condition()
        self.names: dict[int, int] = {}

    def run(self, patch: pytest.MonkeyPatch, jobs: list[Callable[[], None]]) -> list[BaseException]:
        failures: list[BaseException] = []

        def work(me: int) -> None:
            self.names[threading.get_ident()] = me
            try:
                self.step("")
                jobs[me]()
            except BaseException as error:
                failures.append(error)
            finally:
                with self.changed:
                    self.plan = [entry for entry in self.plan if entry[0] != me]
                    self.changed.notify_all()

        watch(patch, self.step)
        patch.setattr(time, "sleep", self.sleep)
        threads = [threading.Thread(target=work, args=(me,)) for me in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return failures

    def step(self, name: str) -> None:
        me = self.names[threading.get_ident()]
        with self.changed:
            assert self.changed.wait_for(lambda: self.plan[0][0] == me, timeout=60)
            self.plan[0][1] -= 1
            if self.plan[0][1] < 0:
                self.plan.pop(0)
                self.changed.notify_all()
                assert self.changed.wait_for(lambda: self.plan[0][0] == me, timeout=60)

    def sleep(self, seconds: float) -> None:
        """Whoever waits lets the other one run for some operations."""
        me = self.names[threading.get_ident()]
        with self.changed:
            if any(entry[0] != me for entry in self.plan):
                self.plan[:0] = [[1 - me, 5]]
                self.changed.notify_all()


@pytest.mark.parametrize("other_size", [2, 4])
def test_two_commands_at_once_make_the_pairs_of_one(
    fill: Filler, whole: dict[str, bytes], other_size: int, tmp_path: Path
) -> None:
    """The second begins anywhere in the first and stops anywhere; locks do nothing between threads."""
    tried = 0
    for first in range(0, 60, 4):
        for second in range(1, 60, 12):
            folder = tmp_path / f"{first}-{second}"
            jobs = [lambda: fill(folder), lambda: fill(folder, other_size)]  # noqa: B023
            turns = Turns([(0, first), (1, second), (0, float("inf")), (1, float("inf"))])
            with pytest.MonkeyPatch.context() as patch:
                assert turns.run(patch, jobs) == [], (first, second)
            assert content(folder) == whole, (first, second)
            tried += 1
    assert tried == 75


def test_a_second_command_waits_for_the_first(
    fill: Filler, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level("INFO")
    lock = tmp_path / "two" / "parts" / ".lock"
    lock.parent.mkdir(parents=True)
    program = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.lockf(f, fcntl.LOCK_EX); "
        "print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    made_before: list[bool] = []

    def end_the_first(seconds: float) -> None:
        made_before.append(bool(list(lock.parent.glob("*.npz"))))
        holder.kill()
        holder.wait()

    monkeypatch.setattr(time, "sleep", end_the_first)
    fill(tmp_path / "two")
    assert made_before == [False] and content(tmp_path / "two") == whole
    assert len([line for line in caplog.messages if "waiting for it" in line]) == 1


def test_a_file_system_without_locks(
    fill: Filler, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    fill(tmp_path / "pairs")
    assert content(tmp_path / "pairs") == whole
    assert len([line for line in caplog.messages if "no locks there (No locks available)" in line]) == 1


def test_two_commands_with_other_settings_never_mix(fill: Filler, tmp_path: Path) -> None:
    """Both find an empty folder; the one that comes second is refused, whenever that is."""
    for first in range(1, 12):
        folder = tmp_path / str(first)

        def other() -> None:
            _maker(2).fill(PairStore(folder, {**_manifest(), "seed": 7}))  # noqa: B023

        turns = Turns([(0, first), (1, float("inf")), (0, float("inf"))])
        with pytest.MonkeyPatch.context() as patch:
            failures = turns.run(patch, [lambda: fill(folder), other])  # noqa: B023
        assert [type(error) for error in failures] == [UserError]
        assert "seed was" in str(failures[0])
        assert json.loads((folder / MANIFEST).read_text())["complete"]


# Kills and full disks -------------------------------------------------------------------------------


def test_a_kill_before_any_file_operation_costs_nothing(
    fill: Filler, whole: dict[str, bytes], tmp_path: Path
) -> None:
    kills = 0
    while True:
        folder = tmp_path / str(kills)
        try:
            with pytest.MonkeyPatch.context() as patch:
                kill_before(patch, kills)
                fill(folder)
            break
        except Killed:
            fill(folder)
            assert content(folder) == whole, kills
            kills += 1
    assert kills > 50


def test_a_full_disk_at_any_file_is_one_line_and_then_the_same_command_goes_on(
    fill: Filler, whole: dict[str, bytes], tmp_path: Path
) -> None:
    def full(name: str) -> None:
        if name == "fsync":
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for file in range(1 + 3 + 4 + 1):
        folder, left = tmp_path / str(file), [file]
        with pytest.MonkeyPatch.context() as patch, pytest.raises(OSError) as caught:
            watch(patch, full)
            fill(folder)
        assert str(folder) in caught.value.filename and caught.value.errno == errno.ENOSPC
        assert not list(folder.rglob("*.tmp"))
        fill(folder)
        assert content(folder) == whole


def test_arrays_are_not_joined_over_gaps_or_from_damaged_parts(fill: Filler, tmp_path: Path) -> None:
    store = PairStore(tmp_path, _manifest())
    for start in (0, 4):
        store.write(start, _rows(torch.arange(start, start + 2)))
    assert not store.join() and not list(tmp_path.glob("*.npy"))
    store.write(1, _rows(torch.arange(1, 5)))  # of a command with other batches
    part = tmp_path / "parts" / "000000004-000000006.npz"
    intact = part.read_bytes()
    for damage in (
        b"",
        b"x" * 100,
        intact[:-30],
        (tmp_path / "parts/000000000-000000002.npz").read_bytes()[:99],
    ):
        part.write_bytes(damage)
        with pytest.raises(UserError, match="000000004-000000006.npz is damaged .*; delete this file"):
            store.join()
    np.savez(part, **{name: array[:1] for name, array in _rows(torch.arange(4, 6)).items()})
    with pytest.raises(UserError, match="is damaged"):
        store.join()
    assert not list(tmp_path.glob("*.npy"))
    part.write_bytes(intact)
    assert store.join()
    assert all(np.array_equal(v, _rows(torch.arange(ROWS))[k]) for k, v in arrays(tmp_path).items())


# What a manifest vouches for ------------------------------------------------------------------------


def _at(place: Any, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[place] = value
        return array

    return change


DAMAGE = {
    "t = 7": ("t", _at(3, 7), "times outside"),
    "t = nan": ("t", _at(3, np.nan), "times outside"),
    "t < 0": ("t", _at(3, -0.1), "times outside"),
    "t = 0 with masks": ("t", _at(3, 0), "t = 0 of row 3, which has masks"),
    "large id": ("x0", _at((5, 1), 100_000), r"x0.npy has ids 0\.\.100000"),
    "negative id": ("xt", _at((5, 1), -5), r"xT.npy has ids -5\.\.2"),
    "mask in the text": ("x0", _at((0, 0), SYMBOLS), "x0.npy holds the mask"),
    "fewer rows": ("x0", lambda array: array[:-1], "have shapes"),
    "floats": ("x0", lambda array: array.astype(float), "holds float64"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_pairs_are_found_in_training_and_in_making(kind: str, fill: Filler, tmp_path: Path) -> None:
    name, change, words = DAMAGE[kind]
    fill(tmp_path)
    read_in_training(tmp_path)
    np.save(tmp_path / FILES[name], change(np.load(tmp_path / FILES[name])))
    for read in (lambda: read_in_training(tmp_path), lambda: fill(tmp_path)):
        with pytest.raises(UserError, match=words) as caught:
            read()
        assert str(caught.value).startswith(f"reflow.save_path={tmp_path}: ")


def test_rows_that_nobody_wrote_and_missing_rows_are_found(fill: Filler, tmp_path: Path) -> None:
    fill(tmp_path)
    before = arrays(tmp_path)
    for name, file in FILES.items():
        array = before[name].copy()
        array[4:] = 0
        np.save(tmp_path / file, array)
    for name, file in (*FILES.items(), (None, None)):
        for read in (lambda: read_in_training(tmp_path), lambda: fill(tmp_path)):
            words = "row 4 holds zeros alone" if name == "xt" else "nobody wrote|zeros alone|shapes|has shape"
            with pytest.raises(UserError, match=words):
                read()
        if name is not None:
            np.save(tmp_path / file, before[name][:4])


@pytest.mark.parametrize(
    "manifest",
    ["{}", "[]", "null", '"x"', "3", "{", "[" * 100_000, "tokenizer", "schedule", "data", "mask_noise",
     "rows", "rows=many", "complete=yes", "length=null", "process=none", "data=[]", "tokenizer=3"],
)  # fmt: skip
def test_odd_manifests_are_one_line(manifest: str, fill: Filler, tmp_path: Path) -> None:
    fill(tmp_path)
    file = tmp_path / MANIFEST
    if manifest[0].isalpha() and manifest != "null":
        key, _, value = manifest.partition("=")
        said = json.loads(file.read_text())
        said.pop(key)
        if value:
            said[key] = {"null": None, "[]": [], "3": 3}.get(value, value)
        manifest = json.dumps(said)
    file.write_text(manifest)
    for read in (lambda: read_in_training(tmp_path), lambda: fill(tmp_path)):
        with pytest.raises(UserError, match=f"{MANIFEST} (cannot be read|describes no pairs)") as caught:
            read()
        assert str(caught.value).startswith(f"reflow.save_path={tmp_path}: ") and "\n" not in str(
            caught.value
        )


# Folders of the official implementation -------------------------------------------------------------

TYPED = ("data.tokenizer_name_or_path=synthetic-align", f"data.vocab_size={SYMBOLS}")


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """64 pairs as the official program stores them: ids int64, times float32, one of them 0, no seeds."""
    folder, generator = tmp_path / "official", np.random.default_rng(0)
    folder.mkdir()
    x0, times = generator.integers(SYMBOLS, size=(64, LENGTH)), generator.random(64, dtype=np.float32)
    times[9] = 0
    xt = np.where(generator.random(x0.shape) < times[:, None], SYMBOLS, x0)
    xt[1] = SYMBOLS
    for name, array in (("xT", xt), ("x0", x0), ("ts", times)):
        np.save(folder / f"{name}.npy", array)
    return folder


def test_official_pairs_train_and_are_validated_on_their_texts(
    official: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = (
        *TYPED, "algo.ignore_seed=True", "loader.global_batch_size=16", "loader.eval_global_batch_size=32",
        "loader.eval_batch_size=null", "loader.num_workers=0", "trainer.max_steps=4",
        "trainer.val_check_interval=4",
        "eval.generate_samples=False", "trainer.enable_progress_bar=False",
        "trainer.num_sanity_val_steps=0", "sampling.steps=2", "eval.nelbo=time",
    )  # fmt: skip
    results = []
    for kind, typed in (
        ("auto", ()),
        ("reflow", ("data.valid=reflow",)),
        ("official", ("data.valid=reflow-dataset", "data.train=reflow-dataset")),
    ):
        caplog.clear()
        cfg = reader(official, *shared, *typed, f"checkpointing.save_dir={tmp_path}/{kind}")
        results.append(MODES["train"](cfg)["val/nll"])
        assert (
            len([line for line in caplog.messages if "validation is on the texts of the pairs" in line]) == 1
        )
    assert len(set(results)) == 1 and 0 < results[0] < 3
    dataset = get_valid_dataloader(cfg, get_tokenizer(cfg)).dataset
    assert np.array_equal(dataset.fetch(range(64))["input_ids"], np.load(official / "x0.npy"))
    with pytest.raises(UserError, match="algo.ignore_seed=False: .* carry no seeds"):
        MODES["train"](
            reader(official, *shared, "algo.ignore_seed=False", f"checkpointing.save_dir={tmp_path}/x")
        )


def test_validation_on_pairs_is_the_bound_of_their_texts_with_fresh_noise(official: Path) -> None:
    cfg = reader(official, *TYPED, "algo.ignore_seed=True", "data.valid=reflow")
    module = build_algorithm(cfg).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    dataset = get_valid_dataloader(cfg, get_tokenizer(cfg)).dataset
    batch = {**dataset.fetch(range(16)), "row": torch.arange(16)}
    text = {name: batch[name] for name in ("input_ids", "attention_mask", "row")}
    ours, plain = (module.loss(b, step=0, num_rows=64, training=False).token_nll for b in (batch, text))
    assert torch.equal(ours, plain) and ours.sum() > 0
    stored = module.loss(batch, step=0, num_rows=64, training=True).token_nll
    assert not torch.equal((stored > 0), (plain > 0)), "other masks than the stored ones"


@pytest.mark.parametrize("noise", ["log-linear", "cosine"])
@pytest.mark.parametrize("algo", ["im-redi", "rectification"])
def test_a_time_of_zero_costs_nothing_and_stays_finite(algo: str, noise: str, official: Path) -> None:
    if algo == "rectification":  # text whose noise is random ids
        x0, xt = np.load(official / "x0.npy"), np.load(official / "xT.npy")
        np.save(official / "xT.npy", np.where(xt == SYMBOLS, 1 - x0, xt))
    ignore = ("algo.ignore_seed=True",) if algo == "im-redi" else ()
    cfg = reader(official, *TYPED, f"algo={algo}", *ignore, f"noise={noise}")
    module = build_algorithm(cfg)
    batch = {**ReflowDataset(official).fetch(range(8, 12)), "row": torch.arange(8, 12)}
    assert batch["t"][1] == 0
    output = module.loss(batch, step=0, num_rows=4, training=True)
    output.loss.backward()
    assert torch.isfinite(output.loss) and torch.isfinite(output.token_nll).all()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    if algo == "im-redi":
        assert (output.token_nll[1] == 0).all() and (output.token_nll > 0).any()


def test_the_texts_of_pairs_are_no_text_with_a_source(official: Path) -> None:
    with pytest.raises(UserError, match="data.valid_source.split=a: validation is on pairs"):
        reader(official, "data.valid=reflow-dataset", "data.valid_source.split=a")
