"""How samplers move: replay, batch layout, network calls, noise removal, errors."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffusion.noise import get_schedule
from diffusion.parameterization import Prediction
from diffusion.process import reverse_probabilities
from diffusion.randomness import row_keys
from samplers import KeyedDraws, SamplerSettings, Samples, State, get_sampler, sampler_names
from samplers.ancestral import Ancestral, decide
from samplers.base import OnStep
from samplers.registry import register
from tests.worlds import NoisyDenoiser, NoisyWorld

NAMES = sampler_names()
TRAITS = {name: get_sampler(name).traits for name in NAMES}
SCHEDULE = get_schedule("log-linear", 1e-3)
WORLD = NoisyWorld()
M = WORLD.mask_id


class Recorder(NoisyDenoiser):
    """A noisy denoiser that notes what it was asked."""

    def __init__(self, world: NoisyWorld) -> None:
        super().__init__(world)
        self.inputs: list[Tensor] = []
        self.sigmas: list[Tensor] = []
        self.conds: list[Tensor] = []

    def denoise(self, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None) -> Prediction:
        assert mask_seeds is not None
        self.inputs.append(xt)
        self.sigmas.append(sigma)
        self.conds.append(mask_seeds)
        return super().denoise(xt, sigma, mask_seeds)


def keys(rows: Tensor, seed: int = 0) -> Tensor:
    return row_keys(seed, 2, 0, rows)


def run(
    name: str,
    rows: Tensor,
    xt: Tensor,
    t: Tensor | float = 1.0,
    denoiser: NoisyDenoiser | None = None,
    on_step: OnStep | None = None,
    **settings: object,
) -> Samples:
    """Sample global rows ``rows`` (B,) from ids ``xt`` (B, L)."""
    denoiser = denoiser or NoisyDenoiser(WORLD)
    mask_seeds = denoiser.draw_seeds(row_keys(0, 1, 0, rows), WORLD.length)
    settings = SamplerSettings(**{"num_steps": 16} | settings)
    sampler = get_sampler(name)(denoiser, SCHEDULE, M, settings)
    return sampler.sample(xt, t, mask_seeds, KeyedDraws(keys(rows)), on_step=on_step)


def mixed_start(batch: int) -> tuple[Tensor, Tensor]:
    """Rows with 3, 2, 1 and 0 masks and times of their own."""
    kinds = torch.tensor([[M, M, M], [M, 1, M], [0, M, 2], [2, 0, 1]])
    return kinds.repeat(batch // 4, 1), torch.linspace(0.05, 1, batch, dtype=torch.float64)


@pytest.mark.parametrize("name", NAMES)
def test_replay_and_batch_layout(name: str) -> None:
    xt, t = mixed_start(64)
    rows = torch.arange(64)
    whole = run(name, rows, xt, t)
    again = run(name, rows, xt, t)
    assert torch.equal(whole.tokens, again.tokens) and torch.equal(whole.mask_seeds, again.mask_seeds)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    parts = Samples.concatenate([run(name, part, xt[part], t[part]) for part in order.split(7)])
    assert torch.equal(parts.tokens, whole.tokens[order])
    assert torch.equal(parts.nfe, whole.nfe[order])
    assert torch.equal(parts.mask_seeds, whole.mask_seeds[order])
    assert not torch.equal(run(name, rows + 64, xt, t).tokens, whole.tokens)


@pytest.mark.parametrize(
    "settings", [{}, {"noise_removal": "greedy"}, {"noise_removal": "none"}, {"reset": False}]
)
def test_cache_equals_ancestral_token_by_token(settings: dict) -> None:
    xt, t = mixed_start(400)
    rows = torch.arange(400)
    paths: dict[str, list[Tensor]] = {"ancestral": [], "ancestral_cache": []}
    plain, cached = (
        run(name, rows, xt, t, on_step=lambda step, _, now, path=path: path.append(now.x), **settings)
        for name, path in paths.items()
    )
    assert torch.equal(torch.stack(paths["ancestral"]), torch.stack(paths["ancestral_cache"]))
    assert torch.equal(plain.mask_seeds, cached.mask_seeds)
    assert (cached.nfe < plain.nfe).all()


@pytest.mark.parametrize("num_steps", [2, 16])
@pytest.mark.parametrize("name", NAMES)
def test_tokens_change_only_where_a_sampler_may_rewrite_its_own(name: str, num_steps: int) -> None:
    xt, t = mixed_start(200)
    before, path = xt.clone(), []
    samples = run(
        name,
        torch.arange(200),
        xt,
        t,
        on_step=lambda step, _, now: path.append((step, now.t, now.x)),
        num_steps=num_steps,
    )
    assert torch.equal(xt, before)  # the caller's ids are not written on
    times = t
    for number, (step, reached, x) in enumerate(path):
        assert step == number and (reached <= times).all()
        assert ((x == before) | ((xt if TRAITS[name].rewrites else before) == M)).all()
        before, times = x, reached
    assert torch.equal(samples.tokens, before)
    assert not (samples.tokens == M).any()


def test_network_calls() -> None:
    xt, t = mixed_start(40)
    num_masked = (xt == M).sum(-1)
    rows = torch.arange(40)
    plain = run("ancestral", rows, xt, t, num_steps=5)
    assert plain.forward_passes == 5 and (plain.nfe == 5).all()
    assert plain.nfe.dtype == torch.int64
    recorder = Recorder(WORLD)
    cached = run("ancestral_cache", rows, xt, t, recorder, num_steps=5)
    assert (cached.nfe <= num_masked.clamp(max=5)).all() and (cached.nfe[num_masked > 0] > 0).all()
    assert cached.forward_passes == len(recorder.inputs) <= 5
    assert int(cached.nfe.sum()) == sum(len(x) for x in recorder.inputs)
    recorder = Recorder(WORLD)
    hitting = run("first_hitting", rows, xt, t, recorder)
    assert torch.equal(hitting.nfe, num_masked) and hitting.forward_passes == 3
    assert [len(x) for x in recorder.inputs] == [30, 20, 10]  # finished rows leave the batch
    none = run("first_hitting", rows[3::4], xt[3::4], t[3::4])
    assert none.forward_passes == 0 and torch.equal(none.tokens, xt[3::4])


def test_cached_calls_match_their_expectation() -> None:
    # Zheng et al., appendix: sum_i 1 - (1 - (alpha_{i-1} - alpha_i))^L per sequence for L masks. A row's
    # count lies in 1..3, so its standard error over 5,000 rows is below 0.015.
    num_rows, num_steps = 5000, 8
    xt = torch.full((num_rows, 3), M)
    samples = run("ancestral_cache", torch.arange(num_rows), xt, num_steps=num_steps)
    times = 1 - (1 - 1e-5) * torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    alphas = SCHEDULE.alpha(times)
    alphas[-1] = 1
    chance = alphas.diff() / (1 - alphas[0])  # alpha(1) is not 0, all rows start masked
    expected = float((1 - (1 - chance) ** 3).sum())
    assert float(samples.nfe.double().mean()) == pytest.approx(expected, abs=0.06)


def test_the_network_sees_the_time_of_each_row() -> None:
    t = torch.tensor([1.0, 0.5, 0.25], dtype=torch.float64)
    recorder = Recorder(WORLD)
    run("ancestral", torch.arange(3), torch.full((3, 3), M), t, recorder, num_steps=4)
    grid = 1 - (1 - 1e-5) * torch.arange(4, dtype=torch.float64) / 4
    for k in range(4):
        torch.testing.assert_close(recorder.sigmas[k], SCHEDULE.sigma(grid[k] * t).float())


@pytest.mark.parametrize("schedule", ["log-linear", "cosine"])
def test_first_hits_happen_at_the_right_times(schedule: str) -> None:
    # With n masks ((1 - alpha_s) / (1 - alpha_t))^n is uniform; also the position, among the n. The
    # Kolmogorov distance of 5,000 uniforms exceeds 0.0325 with probability 2 exp(-2 n d^2) = 5e-5.
    schedule, num_rows = get_schedule(schedule, 1e-3), 5000
    recorder = Recorder(WORLD)
    xt = torch.tensor([[M, 1, M]]).expand(num_rows, -1)
    sampler = get_sampler("first_hitting")(recorder, schedule, M, SamplerSettings(1))
    mask_seeds = recorder.draw_seeds(keys(torch.arange(num_rows), 1), 3)
    sampler.sample(xt, 0.8, mask_seeds, KeyedDraws(keys(torch.arange(num_rows))))
    start = 1 - schedule.alpha(torch.tensor(0.8, dtype=torch.float64))
    first, second = (1 - (-sigma.double()).exp() for sigma in recorder.sigmas)
    for u in ((first / start) ** 2, second / first):
        rank = torch.arange(1, num_rows + 1) / num_rows
        assert float((u.sort().values - rank).abs().max()) < 0.0325
    left = recorder.inputs[1] == M
    assert (left.sum(-1) == 1).all() and abs(float(left[:, 0].double().mean()) - 0.5) < 0.03
    # Between the start and the first hit each mask kept its seed with probability alpha_t / alpha_s. The
    # difference of indicator and probability has mean 0; 10,000 of them, standard error below 0.005.
    kept = (recorder.conds[0] == mask_seeds)[:, [0, 2]].double()
    chance = (1 - start) / (1 - first)
    assert abs(float((kept - chance[:, None]).mean())) < 0.025
    likely = chance[:, None] > 0.5  # so that a constant rate does not pass
    assert abs(float(((kept - chance[:, None]) * likely).mean())) < 0.025
    assert (recorder.conds[0] == mask_seeds)[:, 1].all()  # clean positions have no noise to draw


@pytest.mark.parametrize(
    ("reset", "name"), [(True, "ancestral"), (False, "ancestral"), (False, "first_hitting")]
)
def test_kept_and_renewed_noise(reset: bool, name: str) -> None:
    # One step t -> 0.6 t that leaves masks. 30,000 positions: standard error 0.003.
    num_rows, t = 10_000, 0.9
    recorder, rows = Recorder(WORLD), torch.arange(10_000)
    xt = torch.full((num_rows, 3), M)
    mask_seeds = recorder.draw_seeds(row_keys(0, 1, 0, rows), 3)
    removal = {} if name == "first_hitting" else {"noise_removal": "none", "num_steps": 1, "grid_eps": 0.6}
    samples = run(name, rows, xt, t, recorder, reset=reset, **removal)
    if not reset:
        assert torch.equal(samples.mask_seeds, mask_seeds)
        return
    alphas = SCHEDULE.alpha(torch.tensor([0.9, 0.54], dtype=torch.float64))
    expected = reverse_probabilities(*alphas)
    still, same = samples.tokens == M, samples.mask_seeds == mask_seeds
    assert same[~still].all()
    assert float((still & ~same).double().mean()) == pytest.approx(float(expected.reset), abs=0.015)
    assert float((still & same).double().mean()) == pytest.approx(float(expected.keep), abs=0.015)
    assert float((~still).double().mean()) == pytest.approx(float(expected.unmask), abs=0.015)
    fresh = samples.mask_seeds[still & ~same]
    assert len(fresh.unique()) == len(fresh)


def test_greedy_takes_the_likeliest_tokens_in_the_last_step_only() -> None:
    rows, xt = torch.arange(500), torch.full((500, 3), M)
    recorder = Recorder(WORLD)
    one = run("ancestral", rows, xt, denoiser=recorder, num_steps=1, noise_removal="greedy")
    log_x_theta = recorder.denoise(recorder.inputs[0], recorder.sigmas[0], recorder.conds[0]).full()
    assert torch.equal(one.tokens, log_x_theta.argmax(-1))
    paths: dict[str, list[Tensor]] = {"greedy": [], "ancestral": []}
    for removal, path in paths.items():
        run(
            "ancestral",
            rows,
            xt,
            num_steps=3,
            noise_removal=removal,
            on_step=lambda step, _, now, p=path: p.append(now.x),
        )
    assert torch.equal(paths["greedy"][1], paths["ancestral"][1])
    assert not torch.equal(paths["greedy"][2], paths["ancestral"][2])


def test_without_noise_removal_masks_stay() -> None:
    # 30,000 positions, a part of (1 - alpha(0.2)) / (1 - alpha(1)) = 0.2 stays: standard error 0.0023.
    samples = run(
        "ancestral",
        torch.arange(10_000),
        torch.full((10_000, 3), M),
        num_steps=4,
        noise_removal="none",
        grid_eps=0.2,
    )
    assert float((samples.tokens == M).double().mean()) == pytest.approx(0.2, abs=0.0115)


def test_reverse_step_stands_on_its_own() -> None:
    # A teacher's use: its own prediction, its own alphas; tokens only where decided.
    xt, t = mixed_start(100)
    draws, denoiser = KeyedDraws(keys(torch.arange(100))), NoisyDenoiser(WORLD)
    sampler = Ancestral(denoiser, SCHEDULE, M, SamplerSettings(num_steps=2))
    state = State(xt, t, denoiser.draw_seeds(keys(torch.arange(100), 1), 3))
    alpha_t = SCHEDULE.alpha(t)
    decision = decide(xt == M, alpha_t, (1 + alpha_t) / 2, draws.actions(0, 3))
    after = sampler.reverse_step(0, state, decision, sampler.predict(state), draws)
    assert torch.equal(after.x != xt, decision.unmask)
    assert torch.equal(after.mask_seeds != state.mask_seeds, decision.reset)
    assert decision.unmask.any() and decision.reset.any() and torch.equal(after.t, t)


def test_head_runs_only_where_something_unmasks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    at = Prediction.at
    monkeypatch.setattr(Prediction, "at", lambda self, rows: asked.append(len(rows)) or at(self, rows))
    monkeypatch.setattr("samplers.base._CHUNK_ELEMENTS", 40)  # ten positions of four symbols
    for name in NAMES:
        asked.clear()
        whole = run(name, torch.arange(20), torch.full((20, 3), M))
        assert max(asked) <= 10
        more = TRAITS[name].asks_all or TRAITS[name].rewrites
        assert sum(asked) >= 60 if more else sum(asked) == 60
        monkeypatch.setattr("samplers.base._CHUNK_ELEMENTS", 2**24)
        assert torch.equal(run(name, torch.arange(20), torch.full((20, 3), M)).tokens, whole.tokens)
        monkeypatch.setattr("samplers.base._CHUNK_ELEMENTS", 40)


def test_errors_name_key_value_and_mend() -> None:
    with pytest.raises(
        ValueError, match="sampling.predictor=nope: .*; use one of .*ancestral, ancestral_cache"
    ):
        get_sampler("nope")
    for wrong in (
        {"num_steps": 0},
        {"temperature": 0.0},
        {"p_nucleus": 0.0},
        {"p_nucleus": 1.5},
        {"noise_removal": "all"},
        {"grid_eps": 0.0},
    ):
        with pytest.raises(ValueError, match="^sampling[.].*=.*: out of range; use "):
            SamplerSettings(**{"num_steps": 4} | wrong)
    with pytest.raises(ValueError, match="sampling.noise_removal=greedy: first_hitting"):
        run("first_hitting", torch.arange(1), torch.full((1, 3), M), noise_removal="greedy")
    for t in (0.0, 1.5, torch.tensor([0.5, float("nan")])):
        with pytest.raises(ValueError, match="^t="):
            run("ancestral", torch.arange(2), torch.full((2, 3), M), t)
    with pytest.raises(AssertionError):
        register("ancestral", claim="twice", exact="limit")(Ancestral)
