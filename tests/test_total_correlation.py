"""Total correlation: exact on distributions, by counts on groups of samples, and in
mode=sample_eval_with_tc.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from config.cli import compose_config
from metrics import exact_total_correlation, total_correlation
from tasks import MODES
from tests.test_algo import build
from tests.test_training import TINY
from tests.worlds import World, random_probs


@pytest.mark.parametrize("probs", [random_probs(3, 3), random_probs(2, 5, seed=4), torch.eye(4) / 4])
def test_exact_on_worlds(probs: torch.Tensor) -> None:
    world = World(probs)
    assert exact_total_correlation(probs) == pytest.approx(world.total_correlation() / math.log(2), abs=1e-9)


def test_exact_by_hand() -> None:
    assert exact_total_correlation(torch.eye(4) / 4) == pytest.approx(2)  # two bits, twice the same
    assert exact_total_correlation(torch.full((3, 3, 3), 1 / 27).double()) == pytest.approx(0, abs=1e-6)
    assert exact_total_correlation(torch.tensor([0.5, 0.5])) == pytest.approx(0)


def test_counts_are_over_values() -> None:
    same = torch.tensor([[7, 7, 7]] * 4)
    copies = torch.tensor([[5, 5], [5, 5], [9, 9], [9, 9]])
    free = torch.tensor([[5, 1], [5, 2], [9, 1], [9, 2]])
    tc, joint = total_correlation(same[None])
    assert tc.tolist() == joint.tolist() == [0]
    tc, joint = total_correlation(torch.stack([copies, free]))
    assert tc.tolist() == pytest.approx([1, 0]) and joint.tolist() == pytest.approx([1, 2])


def test_counts_come_to_the_exact_value() -> None:
    """The plug-in bias is about (27 - 1 - 3 * 2) / (2 N ln 2) = 1.4e-3 bits and the standard deviation below
    0.01 for N = 10,000."""
    world = World(random_probs(3, 3))
    generator = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(world.probs, 20_000, replacement=True, generator=generator)
    tc, joint = total_correlation(world.sequences[drawn].view(2, 10_000, 3))
    exact = exact_total_correlation(world.probs.view(3, 3, 3))
    assert tc.tolist() == pytest.approx([exact] * 2, abs=0.04) and exact > 0.4
    assert joint.tolist() == pytest.approx([world.entropy / math.log(2)] * 2, abs=0.04)


def test_members_of_a_group_share_their_start_noise_and_nothing_else() -> None:
    module = build(
        "algo=imdm", "sampling.fix_eps=True"
    )  # without resets the noise at the end is that at the start
    groups = module.generator.sample(12, 2, first_row=5, batch_size=5, group_size=4)
    start = groups.mask_seeds.view(3, 4, -1)
    assert (start == start[:, :1]).all() and len(start[:, 0].unique(dim=0)) == 3
    assert len(groups.tokens.unique(dim=0)) == 12
    alone = module.generator.sample(12, 2, first_row=5)
    assert torch.equal(groups.mask_seeds[::4], alone.mask_seeds[::4]) and torch.equal(
        groups.tokens[0], alone.tokens[0]
    )
    assert len(alone.mask_seeds.unique(dim=0)) == 12


def test_the_mode(tmp_path: Path) -> None:
    words = (
        *TINY,
        "algo=imdm",
        "eval.compute_generative_perplexity=False",
        "loader.eval_global_batch_size=32",
        f"data.cache_dir={tmp_path}/cache",
        f"checkpointing.save_dir={tmp_path}/run",
    )
    train = compose_config([*words, "trainer.max_steps=2", "trainer.val_check_interval=2"], warn=False)
    MODES["train"](train)
    evaluate = (
        *words,
        "mode=sample_eval_with_tc",
        f"eval.checkpoint_path={tmp_path}/run/checkpoints/last.ckpt",
        f"eval.generated_samples_path={tmp_path}/tc.json",
        "sampling.steps=1,2",
        "sampling.num_sample_batches=1",
    )

    def run(*more: str) -> dict:
        cfg = compose_config([*evaluate, *more], warn=False)
        result = MODES[cfg.mode](cfg)
        assert json.loads((tmp_path / "tc.json").read_text()) == result
        return result

    for one in run("sampling.duplicate=16", "sampling.num_duplicate_batch=3")["runs"]:
        assert {"entropy", "generated_seqs", "tc", "total_generation_times", "nfe"} <= one.keys()
        assert len(one["generated_seqs"]) == 32 and "generative_ppl" in one
        assert (one["tc_group_size"], one["tc_groups"], one["tc_limit"]) == (16, 6, 4.0)
        # 8 symbols at 8 positions: 16 samples all differ, and every H(x_j) is at most 3 bits.
        assert one["tc_saturated"] is True and one["tc_joint_entropy"] == pytest.approx(4)
        assert 0 < one["tc"] < 8 * 3 - 4
        for name in ("tc", "entropy", "nfe"):
            low, high = one[f"{name}_interval"]
            assert low <= one[name] <= high
    large = run("sampling.duplicate=40", "sampling.steps=1")
    assert (large["tc_groups"], large["tc_group_size"], large["tc_stderr"]) == (1, 40, None)
    assert large["tc_interval"] is None
    without = run("sampling.steps=1")
    assert without["tc"] == 0.0 and without["tc_saturated"] is None and without["tc_groups"] == 0
    certain = run(
        "sampling.duplicate=16", "sampling.steps=1", "sampling.noise_removal=greedy", "sampling.fix_eps=True"
    )
    assert (
        certain["tc"] == 0 and certain["tc_saturated"] is False
    )  # one greedy step is a function of the start


def test_settings_without_effect_are_told() -> None:
    from config.run import check

    def told(*words: str) -> str:
        cfg = compose_config(["debug=fast", *words], warn=False)
        return " ".join(check(cfg))

    assert "sampling.duplicate has no effect in mode=train" in told("sampling.duplicate=4")
    assert "sampling.num_duplicate_batch has no effect" in told("sampling.num_duplicate_batch=2")
    assert "have no effect without sampling.semi_ar=True" in told("sampling.stride_length=2")
