"""Sampling token by token: the cache against full passes, distributions by enumeration, given tokens."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from golden_weights import fill_golden
from torch import Tensor

from diffusion import NEG_INF
from diffusion.parameterization import Prediction
from diffusion.randomness import row_keys
from models.attention import attention, plain_attention
from models.dit import BackboneConfig, DiT
from models.precision import Precision
from samplers.base import State
from tests.test_ar import LENGTH, build
from tests.test_training import run
from tests.worlds import total_variation, tv_noise
from trainer_base import TrainerBase


class UncachedDecoder:
    """What ``AR.decoder`` promises, by a full pass over everything read so far at each call."""

    def __init__(self, module: TrainerBase) -> None:
        self.module, self.seen = module, None

    def read(self, ids: Tensor) -> Prediction:
        objective, backbone = self.module.objective, self.module.backbone
        self.seen = objective.with_start(ids) if self.seen is None else torch.cat((self.seen, ids), 1)
        return objective.prediction(backbone, backbone.body(self.seen, None)[:, -1:])


# The network with a cache -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "dtype"),
    [({}, None), ({"softcap": 50.0}, None), ({"qk_norm": True}, None), ({"qk_norm": True}, torch.bfloat16)],
)
@pytest.mark.parametrize("pieces", [[1] * 7, [4, 1, 1, 1], [3, 3, 1], [40, 1, 30]])
@torch.no_grad()
def test_pieces_give_the_features_of_the_whole(changes: dict, dtype: Any, pieces: list[int]) -> None:
    """In float32 up to the order of sums; bfloat16 rounds at 2^-8, a few times over, at size 1."""
    config = BackboneConfig(
        vocab_size=51, mask_id=50, hidden_size=64, cond_dim=32, n_blocks=2, n_heads=4, length=16, causal=True,
        **changes,
    )  # fmt: skip
    model = fill_golden(DiT(config), hot=True)
    model.precision = Precision(dtype)
    x = torch.randint(50, (3, sum(pieces)), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(sum(pieces))
    features = torch.cat([model.body(part, None, cache=cache) for part in x.split(pieces, 1)], 1)
    whole = model.body(x, None)
    tolerance = 2e-5 if dtype is None else 0.06
    torch.testing.assert_close(features, whole, rtol=tolerance, atol=tolerance)
    assert cache[0].length == sum(pieces)
    # Positions matter: the rotary offset is seen by the comparison.
    assert (model.body(x[:, 1:], None)[:, -1] - whole[:, -1]).abs().max() > 0.3


def test_the_last_queries_of_a_causal_attention() -> None:
    q, k, v = torch.randn(3, 2, 2, 9, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    for softcap in (0.0, 5.0):
        whole = plain_attention(q, k, v, causal=True, softcap=softcap)
        for last in (1, 4, 9):
            part = attention(q[:, :, -last:], k, v, causal=True, softcap=softcap)
            torch.testing.assert_close(part, whole[:, :, -last:], rtol=1e-5, atol=1e-6)


# Sampling -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize(
    "overrides", [(), ("model.softcap=50",), ("model.qk_norm=True",), ("trainer.precision=bf16",)]
)
def test_cached_samples_are_the_uncached_ones(
    overrides: tuple[str, ...], bos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for length in (4, 23):
        module = build(*overrides, f"model.length={length}", bos=bos, symbols=20, noise=0.3)
        cached = module.generator.sample(6, 1)
        uncached = lambda *_, module=module: UncachedDecoder(module)  # noqa: E731
        monkeypatch.setattr(module.objective, "decoder", uncached)
        uncached = module.generator.sample(6, 1)
        # In bfloat16 a draw may fall between the two roundings of its distribution, and the row goes on
        # differently.
        equal = (cached.tokens == uncached.tokens).all(-1).sum()
        assert equal == 6 if not overrides or "bf16" not in overrides[0] else equal >= 3
        assert cached.nfe.tolist() == [length - bos] * 6 and cached.forward_passes == length - bos
        assert (cached.tokens != module.mask_id).all()
        assert not bos or (cached.tokens[:, 0] == module.objective.context.bos_id).all()


def test_a_call_computes_one_position(monkeypatch: pytest.MonkeyPatch) -> None:
    module = build()
    original, widths = module.backbone.body, []
    monkeypatch.setattr(
        module.backbone,
        "body",
        lambda x, *rest, **named: widths.append(x.shape[1]) or original(x, *rest, **named),
    )
    module.generator.sample(4, 1)
    assert widths == [1] * (LENGTH - 1)
    widths.clear()
    xt = module.generator.prior(2)
    xt[:, 1:4] = 0
    module.generator.reverse(xt, 1.0, None, torch.arange(2), 1)
    assert widths == [4, 1]  # the prefix in one call


def words_and_distribution(module: TrainerBase, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """All words of 3 symbols and 4 free positions, with probabilities by full passes, (81, 4) and (81,)."""
    free = torch.tensor(list(itertools.product(range(3), repeat=4)))
    start = module.objective.context.bos_id if module.objective.context.bos_id is not None else module.mask_id
    seen = torch.cat((torch.full((81, 1), start), free), 1)
    with torch.no_grad():
        logits = module.backbone(seen[:, :-1], None).double()
    logits[..., module.mask_id] = NEG_INF
    if module.objective.context.bos_id is not None:
        logits[..., module.objective.context.bos_id] = NEG_INF  # these models never write it: see free_of_bos
    distribution = (
        (logits / temperature).log_softmax(-1).gather(-1, free[..., None]).squeeze(-1).sum(-1).exp()
    )
    return free, distribution


def free_of_bos(module: TrainerBase) -> TrainerBase:
    """Without probability for bos, so that all words are of 3 symbols."""
    if module.objective.context.bos_id is not None:
        with torch.no_grad():
            module.backbone.head.weight[module.objective.context.bos_id] = 0
            module.backbone.head.bias[module.objective.context.bos_id] = -60
    return module


def frequencies(tokens: Tensor) -> Tensor:
    """Empirical distribution of words (N, 4) of 3 symbols over all 81."""
    return torch.bincount((tokens * torch.tensor([27, 9, 3, 1])).sum(-1), minlength=81).double() / len(tokens)


@pytest.mark.parametrize("bos", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_samples_have_the_distribution_of_the_model(bos: bool, temperature: float) -> None:
    """By total variation over all words; the bound fails once in 10^4 seeds or less."""
    length, number = 4 + bos, 6000
    module = free_of_bos(build(f"model.length={length}", f"sampling.temperature={temperature}", bos=bos))
    _, distribution = words_and_distribution(module, temperature)
    assert distribution.sum() == pytest.approx(1)
    tokens = module.generator.sample(number, 1, batch_size=number).tokens[:, -4:]
    assert total_variation(frequencies(tokens), distribution) < tv_noise(distribution, number)
    _, other = words_and_distribution(module, 1.6 - temperature)
    assert total_variation(distribution, other) > 2 * tv_noise(
        distribution, number
    )  # the test can tell them apart


def test_given_tokens_stay_and_are_conditioned_on_from_the_left() -> None:
    """Rows with a prefix, with a hole in the middle, and with nothing given, in one batch."""
    number = 5000
    module = free_of_bos(build("model.length=5"))
    words, distribution = words_and_distribution(module)
    m = module.mask_id
    patterns = torch.tensor([[3, 1, 2, m, m], [3, m, 0, 2, m], [3, m, m, m, m]])
    samples = module.generator.reverse(
        patterns.repeat(number, 1), 1.0, None, row_keys(0, 7, 0, torch.arange(3 * number)), 1
    )
    tokens = samples.tokens.view(number, 3, 5)
    assert samples.nfe.view(number, 3).tolist() == [[2, 2, 4]] * number
    assert samples.forward_passes == 4
    after_prefix = distribution * (words[:, :2] == torch.tensor([1, 2])).all(-1)
    assert total_variation(frequencies(tokens[:, 0, 1:]), after_prefix / after_prefix.sum()) < tv_noise(
        after_prefix / after_prefix.sum(), number
    )
    # p(first) p(last | all before): what is given on the right does not reach back.
    first = torch.zeros(3, dtype=distribution.dtype).index_add(0, words[:, 0], distribution)
    given = (words[:, 1:3] == torch.tensor([0, 2])).all(-1)
    weight = distribution * given
    per_first = torch.zeros(3, dtype=distribution.dtype).index_add(0, words[:, 0], weight)
    hole = weight / per_first[words[:, 0]] * first[words[:, 0]]
    assert total_variation(frequencies(tokens[:, 1, 1:]), hole) < tv_noise(hole, number)
    assert total_variation(frequencies(tokens[:, 2, 1:]), distribution) < tv_noise(distribution, number)


def test_a_row_does_not_depend_on_the_others() -> None:
    module = build(symbols=20)
    xt = module.generator.prior(3)
    xt[0, 1:4] = 5
    keys = row_keys(0, 7, 0, torch.arange(3))
    together = module.generator.reverse(xt, 1.0, None, keys, 1)
    alone = [module.generator.reverse(xt[i : i + 1], 1.0, None, keys[i : i + 1], 1) for i in range(3)]
    assert torch.equal(together.tokens, torch.cat([samples.tokens for samples in alone]))
    assert together.nfe.tolist() == [int(samples.nfe) for samples in alone]


@pytest.mark.parametrize("sharp", ["sampling.temperature=1e-4", "sampling.p_nucleus=1e-6"])
def test_sharp_sampling_is_greedy(sharp: str) -> None:
    module = build(sharp, symbols=20)
    tokens = module.generator.sample(3, 1).tokens
    with torch.no_grad():
        best = module.objective.next_token(module.backbone, tokens[:, :-1]).full().argmax(-1)
    assert torch.equal(tokens[:, 1:], best)


def test_hook_sees_the_text_grow() -> None:
    module, seen = build(), []

    def watch(step: int, before: State, after: State) -> None:
        seen.append((step, after.t.tolist(), (after.x == module.mask_id).sum()))

    module.generator.sample(2, 1, on_step=watch)
    assert [step for step, _, _ in seen] == list(range(LENGTH - 1))
    assert [int(masks) for _, _, masks in seen] == [8, 6, 4, 2, 0]
    assert seen[-1][1] == [0.0, 0.0]


def test_a_row_without_bos_is_one_line() -> None:
    module = build()
    with pytest.raises(ValueError, match="xt=position 0: masked, but .* bos") as caught:
        module.generator.reverse(torch.full((2, LENGTH), module.mask_id), 1.0, None, torch.arange(2), 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("algo", "predictor", "fitting"),
    [("ar", "ancestral", "autoregressive"), ("ar", "first_hitting", "autoregressive"),
     ("mdlm", "autoregressive", "ancestral")],
)  # fmt: skip
def test_a_sampler_of_another_family_is_refused(
    tmp_path: Path, algo: str, predictor: str, fitting: str
) -> None:
    with pytest.raises(
        ValueError, match=f"sampling.predictor={predictor}: not for .* models; use one of .*{fitting}"
    ):
        words = (f"sampling.predictor={predictor}", f"checkpointing.save_dir={tmp_path}/run")
        run(tmp_path, f"algo={algo}", *words)
