"""Tables of P(gamma): the command that makes them, what is in them, and files that are none."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from test_algo import BATCH, batch, build

from config.cli import compose_config
from diffusion.duality import argmax_distribution
from errors import UserError
from integral.__main__ import main
from integral.polynomial import DEGREES, LevelPolynomial
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
    distribution = read_table(str(made), 27, RANGE).distribution(torch.from_numpy(golden["gammas"]))
    np.testing.assert_allclose(distribution.stays, golden["pt_27"], rtol=1e-12)
    np.testing.assert_allclose(distribution.slope, golden["grad_pt_27"], rtol=1e-6, atol=1e-12)
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
    found, expected = table.distribution(gamma), argmax_distribution(gamma, 500)
    torch.testing.assert_close(found.stays, expected.stays, rtol=1e-11, atol=0)
    torch.testing.assert_close(found.leaves, expected.leaves, rtol=1e-8, atol=0)
    torch.testing.assert_close(found.slope, expected.slope, rtol=1e-5, atol=0)


@pytest.mark.parametrize("algo", ["duo", "distillation"])
def test_an_algorithm_reads_it(algo: str, tmp_path: Path) -> None:
    write_table(tmp_path / "12.npz", Table.of(12, -5.0, -1.0, 5000))
    words = (f"algo={algo}", "trainer.log_every_n_steps=1")
    plain, read = build(*words), build(*words, f"algo.integral_cache_path={tmp_path}/12.npz")
    assert plain.objective.table is None and read.objective.table is not None
    losses = [m.loss(batch(), step=0, num_rows=BATCH, training=True) for m in (plain, read)]
    torch.testing.assert_close(losses[1].token_nll, losses[0].token_nll)
    torch.testing.assert_close(losses[1].loss, losses[0].loss)


# Polynomials ---------------------------------------------------------------------------------------

PUBLISHED = (-3.5, -1.75)


def exact_alpha(t: torch.Tensor, vocab_size: int) -> torch.Tensor:
    gamma = PUBLISHED[0] + (PUBLISHED[1] - PUBLISHED[0]) * t
    distribution = torch.cat([argmax_distribution(part, vocab_size).stays for part in gamma.split(4096)])
    return (vocab_size * distribution - 1) / (vocab_size - 1)


@pytest.mark.parametrize("mode", sorted(DEGREES))
def test_polynomials_are_the_least_squares_of_alpha(mode: str) -> None:
    """What is left is orthogonal to 1, t, ..., t^degree, on 20,000 other times, and not to the next power."""
    polynomial, t = LevelPolynomial.of(30_522, *PUBLISHED, mode), torch.linspace(0, 1, 20_000).double()
    found = polynomial.at(t)
    torch.testing.assert_close(found.stays + found.leaves, torch.ones_like(t))
    alpha = (30_522 * found.stays - 1) / 30_521
    left = alpha - exact_alpha(t, 30_522)
    powers = np.polynomial.legendre.legvander(2 * t.numpy() - 1, DEGREES[mode] + 1)
    overlaps = np.abs(left.numpy() @ powers) / len(t)
    assert overlaps[:-1].max() < 1e-3 * overlaps[-1]
    worst = {"poly3": 0.03, "poly5": 0.005, "poly7": 4e-4, "poly9": 4e-5}[mode]
    assert worst / 3 < left.abs().max() < worst


def test_their_slope_is_their_own_derivative_and_that_of_degree_9_nearly_the_true_one() -> None:
    t = torch.linspace(0, 1, 101, dtype=torch.float64, requires_grad=True)
    speed = PUBLISHED[1] - PUBLISHED[0]
    for mode in DEGREES:
        found = LevelPolynomial.of(30_522, *PUBLISHED, mode).at(t)
        (slope,) = torch.autograd.grad(found.stays.sum(), t)
        torch.testing.assert_close(slope / speed, found.slope.detach())
    exact = argmax_distribution(PUBLISHED[0] + speed * t.detach(), 30_522).slope
    assert (slope / speed - exact).abs().max() < 0.003 * exact.abs().max()


def test_a_polynomial_that_is_no_probability_is_one_line() -> None:
    with pytest.raises(UserError) as caught:
        LevelPolynomial.of(30_522, -5.0, -1.0, "poly5")
    message = str(caught.value)
    start = "algo.curriculum_mode=poly5: for gamma from -5 to -1 and 30522 ids its alpha runs from 1.063"
    assert message.startswith(start) and "\n" not in message


def test_the_curriculum_takes_its_level_from_the_polynomial() -> None:
    words = ("algo=duo", "algo.gamma_min=-2.7", "algo.gamma_max=0.2")
    losses = {}
    for mode in ("simple", "poly3", "poly9"):
        module = build(*words, f"algo.curriculum.mode={mode}")
        outputs = [module.loss(batch(), step=s, num_rows=BATCH, training=s < 300_000) for s in (0, 300_000)]
        losses[mode] = [output.token_nll for output in outputs]
    torch.testing.assert_close(losses["poly9"][0], losses["simple"][0], rtol=0.05, atol=1e-3)
    assert not torch.isclose(losses["poly3"][0], losses["simple"][0], rtol=0.01).any(1).all()
    assert torch.equal(losses["poly3"][1], losses["simple"][1])  # validation knows no curriculum


def test_what_is_no_table_is_one_line(made: Path, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no table")
    (tmp_path / "hidden").write_bytes(pickle.dumps({"pt": np.zeros(3)}))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    np.savez(tmp_path / "objects.npz", gammas=np.array([{}], dtype=object))
    good = dict(np.load(made))
    broken = {
        "empty": {name: good[name][:0] for name in good if name != "vocab_size"},
        "short": {"grad_pt": good["grad_pt"][:-1]},
        "square": {name: good[name].reshape(50, -1) for name in good if name != "vocab_size"},
        "nan": {"leaves": np.where(np.arange(5000) == 7, np.nan, good["leaves"])},
        "falling": {"gammas": good["gammas"][::-1]},
        "uneven": {"gammas": np.where(np.arange(5000) < 9, good["gammas"] - 1, good["gammas"])},
    }
    for name, changes in broken.items():
        np.savez(tmp_path / f"{name}.npz", **{**good, **changes})
    cases = (
        *(
            (tmp_path / f"{name}.npz", 27, RANGE, "are no columns of one length, 2 or more")
            for name in ("empty", "short", "square")
        ),
        (tmp_path / "nan.npz", 27, RANGE, "holds numbers that are not finite"),
        *(
            (tmp_path / f"{name}.npz", 27, RANGE, "its gammas do not rise evenly")
            for name in ("falling", "uneven")
        ),
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
