"""Windows that slide over a longer text: their distribution on a Markov chain, what is kept and what is
drawn.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from config.cli import compose_config
from diffusion.noise import get_schedule
from diffusion.randomness import row_keys
from samplers import KeyedDraws, SamplerSettings, Samples, get_sampler
from samplers.semi_ar import Strides
from tests.test_algo import build
from tests.test_more_samplers import chain
from tests.worlds import NoisyDenoiser, NoisyWorld, World, total_variation, tv_noise

SCHEDULE = get_schedule("log-linear", 1e-3)
NUM_SAMPLES = 20_000


def keys(stream: int, number: int) -> Tensor:
    return row_keys(0, stream, 0, torch.arange(number))


@pytest.mark.parametrize(("name", "order"), [("first_hitting", "random"), ("ancestral", "spread")])
def test_a_window_that_sees_enough_gives_the_distribution_of_the_whole(name: str, order: str) -> None:
    """A chain of 8 tokens through windows of 4: what a stride keeps is all that its tokens depend on."""
    window_world, whole = World(chain(0.8, 4)), World(chain(0.8, 8).clone())
    sampler = get_sampler(name, "absorbing", order)(
        window_world.denoiser(), SCHEDULE, 2, SamplerSettings(num_steps=4)
    )

    def window(xt: Tensor, start_keys: Tensor, draw_keys: Tensor) -> Samples:
        return sampler.sample(xt, 1.0, None, KeyedDraws(draw_keys))

    xt = torch.full((NUM_SAMPLES, 4), 2)
    for stride_length, num_strides in ((1, 4), (2, 2)):
        samples = Strides(stride_length, num_strides).sample(
            window, xt, keys(1, NUM_SAMPLES), keys(2, NUM_SAMPLES), 2
        )
        index = (samples.tokens * 2 ** torch.arange(7, -1, -1)).sum(-1)
        distribution = torch.bincount(index, minlength=256) / NUM_SAMPLES
        assert total_variation(distribution.double(), whole.probs) < tv_noise(whole.probs, NUM_SAMPLES)
        assert (samples.nfe == 4 + num_strides * stride_length).all()
        assert samples.forward_passes == 4 + num_strides * stride_length
    # Windows that keep nothing would miss it by far.
    apart = (chain(0.8, 4).flatten()[:, None] * chain(0.8, 4).flatten()).flatten()
    assert total_variation(apart, whole.probs) > 2 * tv_noise(whole.probs, NUM_SAMPLES)


def test_what_a_stride_keeps_and_draws() -> None:
    world = NoisyWorld()
    denoiser = NoisyDenoiser(world)
    sampler = get_sampler("ancestral_cache")(denoiser, SCHEDULE, 3, SamplerSettings(num_steps=8))
    seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def window(xt: Tensor, start_keys: Tensor, draw_keys: Tensor) -> Samples:
        seen.append((xt, start_keys, draw_keys))
        mask_seeds = denoiser.draw_seeds(start_keys, 3)
        return sampler.sample(xt, 1.0, mask_seeds, KeyedDraws(draw_keys))

    xt = torch.full((50, 3), 3)
    samples = Strides(2, 3).sample(window, xt, keys(1, 50), keys(2, 50), 3)
    assert samples.tokens.shape == samples.mask_seeds.shape == (50, 9) and not (samples.tokens == 3).any()
    for stride, (given, _, _) in enumerate(seen[1:], 1):
        end = 3 + 2 * (stride - 1)
        assert torch.equal(given[:, :1], samples.tokens[:, end - 1 : end]) and (given[:, 1:] == 3).all()
    for which in (1, 2):  # every stride has start noise and draws of its own
        assert len(torch.cat([entry[which] for entry in seen]).unique()) == 200
    alone = Strides().sample(window, xt, keys(1, 50), keys(2, 50), 3)
    assert torch.equal(alone.tokens, samples.tokens[:, :3]) and (alone.nfe <= samples.nfe).all()


@pytest.mark.parametrize("algo", ["mdlm", "imdm", "ar"])
def test_any_algorithm_writes_longer_texts(algo: str) -> None:
    words = (f"algo={algo}", "sampling.semi_ar=True", "sampling.stride_length=3", "sampling.num_strides=2")
    module, plain = build(*words), build(f"algo={algo}")
    texts = module.generator.sample(6, 4, batch_size=6)
    assert texts.tokens.shape == (6, 10 + 2 * 3) and not (texts.tokens == module.mask_id).any()
    assert torch.equal(texts.tokens[:, :10], plain.generator.sample(6, 4).tokens)
    assert torch.equal(texts.tokens, module.generator.sample(6, 4, batch_size=4).tokens)
    assert (texts.nfe > plain.generator.sample(6, 4).nfe).all()


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="^sampling.semi_ar=True: a uniform-state model .*; use"):
        Strides(1, 1).check("uniform")
    Strides(1, 0).check("uniform")
    with pytest.raises(ValueError, match="^sampling.stride_length=1024: keeps nothing of a window"):
        compose_config(["algo=mdlm", "sampling.semi_ar=True", "sampling.stride_length=1024"], warn=False)
