"""Tables of P(gamma): the command that makes them, what is in them, and files that are none."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from test_algo import BATCH, batch, build

from config.cli import compose_config
from diffusion.duality import argmax_law
from integral.__main__ import main
from integral.table import Table, read_table, write_table

GOLDEN = Path(__file__).parent / "golden" / "duo_integral.npz"
RANGE = (-5.0, -1.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "deep" / "27.npz"
    assert main(["--vocab_size", "27", "--path", str(path), "--num_points", "5000"]) == 0
    return path


def test_the_command_makes_the_golden_table(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = np.load(GOLDEN, allow_pickle=False)
    law = read_table(str(made), 27, RANGE).law(torch.from_numpy(golden["gammas"]))
    np.testing.assert_allclose(law.stays, golden["pt_27"], rtol=1e-12)
    np.testing.assert_allclose(law.slope, golden["grad_pt_27"], rtol=1e-6, atol=1e-12)
    assert [path.name for path in made.parent.iterdir()] == ["27.npz"], "no temporary file is left"
    for words in (
        ["--vocab_size", "1"],
        ["--vocab_size", "9", "--gamma_min", "-1"],
        ["--vocab_size", "x"],
        [],
    ):
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2
        assert "--vocab_size" in capsys.readouterr().err
    (made.parent / "file").write_text("")
    nowhere = made.parent / "file" / "9.npz"
    assert main(["--vocab_size", "9", "--path", str(nowhere), "--num_points", "9"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --path={nowhere}: ")


def test_between_its_points_it_is_the_integral() -> None:
    table = Table.of(500, -4.0, -2.0, 2001)
    gamma = torch.linspace(-4, -2, 777, dtype=torch.float64)
    found, expected = table.law(gamma), argmax_law(gamma, 500)
    torch.testing.assert_close(found.stays, expected.stays, rtol=1e-11, atol=0)
    torch.testing.assert_close(found.leaves, expected.leaves, rtol=1e-8, atol=0)
    torch.testing.assert_close(found.slope, expected.slope, rtol=1e-5, atol=0)


@pytest.mark.parametrize("algo", ["duo", "distillation"])
def test_an_algorithm_reads_it(algo: str, tmp_path: Path) -> None:
    write_table(tmp_path / "12.npz", Table.of(12, -5.0, -1.0, 5000))
    words = (f"algo={algo}", "trainer.log_every_n_steps=1")
    plain, read = build(*words), build(*words, f"algo.integral_cache_path={tmp_path}/12.npz")
    assert plain.table is None and read.table is not None
    losses = [m.loss(batch(), step=0, num_rows=BATCH, training=True) for m in (plain, read)]
    torch.testing.assert_close(losses[1].token_nll, losses[0].token_nll)
    torch.testing.assert_close(losses[1].loss, losses[0].loss)


def test_what_is_no_table_is_one_line(made: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no table")
    (tmp_path / "hidden").write_bytes(pickle.dumps({"pt": np.zeros(3)}))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "objects.npz", gammas=np.array([{}], dtype=object))
    cases = (
        (tmp_path / "absent.npz", 27, RANGE, "no such file"),
        *(
            (tmp_path / n, 27, RANGE, "no npz table")
            for n in ("text.npz", "hidden", "other.npz", "objects.npz")
        ),
        (made, 30, RANGE, "is for 27 ids, the tokenizer has 30"),
        (made, 27, (-6.0, -1.0), "covers gamma from -5 to -1, not from -6 to -1"),
    )
    for path, size, gammas, problem in cases:
        with pytest.raises(ValueError, match=problem) as caught:
            read_table(str(path), size, gammas)
        message = str(caught.value)
        assert message.startswith(f"algo.integral_cache_path={path}: ") and "\n" not in message
        assert f"python -m integral --vocab_size {size}" in message


@pytest.mark.parametrize("key", ["algo.integral_cache_path", "algo.curriculum.integral_cache_path"])
def test_official_pickles_are_refused_before_anything_is_read(key: str) -> None:
    with pytest.raises(ValueError, match=r"^algo.integral_cache_path=a/gpt2.pkl: a pickle, .*; leave it out"):
        compose_config(["algo=duo", f"{key}=a/gpt2.pkl"], warn=False)
    assert compose_config(["algo=duo", "algo.integral_cache_path=a/gpt2.npz"], warn=False)
