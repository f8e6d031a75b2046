"""The loop that every sampler runs in, and the work at positions that receive a token.

Shapes: B rows, L positions, N positions that unmask, V vocabulary (mask included).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor

from diffusion.categorical import nucleus, temper
from diffusion.noise import Schedule
from diffusion.parameterization import Denoiser, Prediction
from errors import UserError
from samplers.draws import Draws

REMOVALS = ("ancestral", "greedy", "none", "tail", "greedy_tail")
_CHUNK_ELEMENTS = 2**24  # log-probabilities alive at once: 128 MiB in float64

TokenDistribution = Callable[
    [Tensor, Tensor], Tensor
]  # rows (N,) and positions (N,) -> log-probabilities (N, V)


class CallSchedule(Protocol):
    """How many masks each network call unmasks (samplers/schedules.py)."""

    def due(self, num_masked: int, length: int, step: int, num_calls: int) -> int:
        """Of ``num_masked`` >= 1 masks among ``length`` positions, how many call ``step`` of ``num_calls``
        unmasks; all of them in the last call."""
        ...


@dataclass(frozen=True)
class SamplerSettings:
    """What a user chooses about sampling.

    Attributes:
        num_steps: network calls of samplers that walk on a time grid (first hitting has no grid).
        noise_removal: the last step draws what is still masked ("ancestral"), takes its most likely token
            ("greedy"), or is a step like any other and leaves masks ("none"). With a tail all ``num_steps``
            steps are like any other, and one more call, at ``grid_eps``, draws what is left ("tail") or takes
            the most likely tokens ("greedy_tail"): num_steps + 1 calls, as MDLM and Duo have it.
        temperature: tokens are drawn from p**(1/temperature), renormalised; times are not affected.
        p_nucleus: tokens are drawn from the smallest set with at least this mass; 1 switches it off.
        reset: whether masks may receive new noise (infinite-mask models); without it they keep theirs.
        grid_eps: last time of the grid, as a part of the start time.
        schedule: how many masks a call unmasks, of samplers with the trait ``scheduled``; None: as they do
            without it.
        own: the sampler's own settings (``Settings`` of its file); None: their defaults.

    Raises:
        UserError: a value out of its range.
    """

    num_steps: int
    noise_removal: Literal["ancestral", "greedy", "none", "tail", "greedy_tail"] = "ancestral"
    temperature: float = 1.0
    p_nucleus: float = 1.0
    reset: bool = True
    grid_eps: float = 1e-5
    schedule: CallSchedule | None = None
    own: Any = None

    def __post_init__(self) -> None:
        known = self.noise_removal in REMOVALS
        checks = (
            (self.num_steps >= 1, "steps", self.num_steps, "use at least 1"),
            (known, "noise_removal", self.noise_removal, f"use one of {', '.join(REMOVALS)}"),
            (
                self.temperature > 0,
                "temperature",
                self.temperature,
                "use a positive number, 1 for the model's own",
            ),
            (
                0 < self.p_nucleus <= 1,
                "p_nucleus",
                self.p_nucleus,
                "use a number in (0, 1], 1 switches it off",
            ),
            (0 < self.grid_eps < 1, "grid_eps", self.grid_eps, "use a small positive number such as 1e-5"),
        )
        for holds, key, value, hint in checks:
            if not holds:
                raise UserError(f"sampling.{key}", value, "out of range", hint)


def setting(default: Any, help: str, **limits: Any) -> Any:
    """A key of a sampler's own, in a dataclass ``Settings`` of its file: ``sampling.<file>.<name>``.

    Args:
        default, help, limits: as of ``config.fields.key``, and literals: config/ reads them from the text.
    """
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class Traits:
    """What a sampler claims and needs; tests and the checks of the configuration go by it (docs/samplers.md).

    Attributes:
        claim: some three words for ``--help``.
        exact: what the distribution of its samples is, when the network is the exact denoiser of the data.
            "exact": that of the data, whatever the settings; "limit": that of the data when the number of
            steps grows, each with one token to write; "sharpens": no such claim, likely texts gain.
        families: models that it makes sense for.
        order: ``sampling.order`` that it stands for.
        own_order: which masks unmask in a step is not left to the process: ``sampling.order`` has no meaning,
            and times, or mask noise, may say something else than in the process.
        on_grid: ``sampling.steps`` matters; without it a row takes one network call a mask.
        removals: values of ``sampling.noise_removal`` that make sense.
        rewrites: a token that was written may change or become a mask again.
        asks_all: in each call the head runs at all masks of a row, not only at those that unmask.
        scheduled: ``sampling.schedule`` can say how many masks a call unmasks.
    """

    claim: str
    exact: Literal["exact", "limit", "sharpens"]
    families: tuple[str, ...] = ("absorbing",)
    order: str = "random"
    own_order: bool = False
    on_grid: bool = True
    removals: tuple[str, ...] = REMOVALS
    rewrites: bool = False
    asks_all: bool = False
    scheduled: bool = False


class Memory(Protocol):
    """What a sampler keeps of earlier steps, row by row; it is made in ``Sampler.begin``."""

    def select(self, rows: Tensor) -> Memory:
        """The memory of the sub-batch ``rows`` (n,) int64."""
        ...

    def merge(self, rows: Tensor, part: Memory) -> Memory:
        """This memory with ``rows`` (n,) int64 replaced by those of ``part``."""
        ...


@dataclass(frozen=True)
class State:
    """Where a batch stands: ids ``x`` (B, L), times ``t`` (B,) float64, mask noise ``mask_seeds`` or None,
    the ``memory`` of samplers that have one, and ``fixed`` (B, L) bool or None, see ``Sampler.sample``."""

    x: Tensor
    t: Tensor
    mask_seeds: Tensor | None
    memory: Memory | None = None
    fixed: Tensor | None = None

    def select(self, rows: Tensor) -> State:
        """The sub-batch ``rows`` (n,) int64."""
        mask_seeds = None if self.mask_seeds is None else self.mask_seeds[rows]
        memory = None if self.memory is None else self.memory.select(rows)
        fixed = None if self.fixed is None else self.fixed[rows]
        return State(self.x[rows], self.t[rows], mask_seeds, memory, fixed)

    def merge(self, rows: Tensor, part: State) -> State:
        """This batch with ``rows`` (n,) int64 replaced by those of ``part``."""
        mask_seeds = (
            None
            if self.mask_seeds is None or part.mask_seeds is None
            else self.mask_seeds.index_copy(0, rows, part.mask_seeds)
        )
        known = self.memory is not None and part.memory is not None
        memory = self.memory.merge(rows, part.memory) if known else None
        x, t = self.x.index_copy(0, rows, part.x), self.t.index_copy(0, rows, part.t)
        return State(x, t, mask_seeds, memory, self.fixed)


OnStep = Callable[[int, State, State], None]  # number of a step, the states before and after it


@dataclass(frozen=True)
class Samples:
    """What sampling returns: tokens (B, L), nfe (B,) int64 network calls of each sequence,
    forward_passes calls of the network on any batch, mask_seeds the mask noise at the end."""

    tokens: Tensor
    nfe: Tensor
    forward_passes: int
    mask_seeds: Tensor | None

    @classmethod
    def concatenate(cls, parts: Sequence[Samples]) -> Samples:
        """The samples of several batches as one; forward passes add up. All or none carry ``mask_seeds``."""
        seeds = [part.mask_seeds for part in parts if part.mask_seeds is not None]
        return cls(
            tokens=torch.cat([part.tokens for part in parts]),
            nfe=torch.cat([part.nfe for part in parts]),
            forward_passes=sum(part.forward_passes for part in parts),
            mask_seeds=torch.cat(seeds) if seeds else None,
        )


def due(settings: SamplerSettings, step: int, num_calls: int, is_masked: Tensor) -> Tensor:
    """How many masks of each row, (B,) int64, call ``step`` of ``num_calls`` unmasks: by the settings'
    schedule, else the same number in every call."""
    num_masked, length = is_masked.sum(-1), is_masked.shape[1]
    if settings.schedule is None:
        return (num_masked / (num_calls - step)).ceil().long()
    found = torch.zeros_like(num_masked)
    for n in num_masked.unique().tolist():
        if n:
            found[num_masked == n] = settings.schedule.due(n, length, step, num_calls)
    return found


def chunks(where: Tensor, vocab_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows (N,) and positions (N,) of ``where`` (B, L) bool, so many at a time that (N, V) fits."""
    batch_index, position = where.nonzero(as_tuple=True)
    size = max(1, _CHUNK_ELEMENTS // vocab_size)
    return zip(batch_index.split(size), position.split(size), strict=True)


Ranking = Callable[[State, Prediction], Tensor]


class Sampler(ABC):
    """A reverse process. Subclasses say which rows need a step (``pending``) and what it does (``step``).

    Args:
        denoiser: the model, as objectives and teachers see it too.
        schedule: alpha(t) of the process.
        mask_id: id of the mask.
        settings: the user's choices.

    Raises:
        UserError: ``noise_removal`` is one that the sampler has no use for.
    """

    # These are set by the registry.
    name: ClassVar[str]
    traits: ClassVar[Traits]
    own_settings: ClassVar[type | None]  # ``Settings`` of the file

    def __init__(
        self, denoiser: Denoiser, schedule: Schedule, mask_id: int, settings: SamplerSettings
    ) -> None:
        removal, able = settings.noise_removal, self.traits.removals
        if removal not in able:
            problem = f"{self.name} leaves no mask" if removal == "none" else f"{self.name} has no such step"
            raise UserError("sampling.noise_removal", removal, problem, f"use {' or '.join(able)}")
        self.denoiser = denoiser
        self.schedule = schedule
        self.mask_id = mask_id
        self.settings = settings
        self.own = settings.own
        if self.own is None and self.own_settings is not None:
            self.own = self.own_settings()

    def begin(self, state: State) -> State:
        """The state that the first step sees: a sampler that remembers puts its ``memory`` in here."""
        return state

    @abstractmethod
    def pending(self, step: int, state: State) -> Tensor:
        """Rows (B,) bool that step number ``step`` has to treat; sampling ends when there are none."""

    @abstractmethod
    def step(self, step: int, state: State, draws: Draws) -> tuple[State, Tensor]:
        """One reverse step of all rows of ``state``; returns the new state and the rows (B,) bool
        for which the network was called (in one forward pass)."""

    @torch.no_grad()
    def sample(
        self,
        xt: Tensor,
        t: Tensor | float,
        mask_seeds: Tensor | None,
        draws: Draws,
        *,
        fixed: Tensor | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        """Run the reverse process from (xt, t) to its end.

        Args:
            xt: (B, L) ids; positions that are not masked stay as they are.
            t: start times in (0, 1], one for all or (B,); 1 is pure noise.
            mask_seeds: mask noise of ``xt`` (``denoiser.draw_seeds`` or stored seeds), None for models
            without.
            draws: source of all randomness.
            fixed: (B, L) bool, positions that keep their ids, for a process that may change any token; None:
                none. Masked processes keep what is not masked without it.
            on_step: called after each step with its number and the states of all rows before and after it.

        Raises:
            ValueError: a start time outside (0, 1].
        """
        times = torch.as_tensor(t, dtype=torch.float64, device=xt.device).expand(len(xt))
        if not ((times > 0) & (times <= 1)).all():
            shown = f"{times.min():g}..{times.max():g}"
            raise UserError("t", shown, "not in (0, 1]", "start above 0 (data), at most at 1 (noise)")
        state = self.begin(State(xt.clone(), times, mask_seeds, fixed=fixed))
        nfe = torch.zeros(len(xt), dtype=torch.int64, device=xt.device)
        forward_passes, step = nfe.new_zeros(()), 0  # counted where they are: asking makes a GPU wait
        while (rows := self.pending(step, state).nonzero().squeeze(-1)).numel():
            part, called = self.step(step, state.select(rows), draws.select(rows))
            after = state.merge(rows, part)
            nfe.index_add_(0, rows, called.long())
            forward_passes += called.any()
            if on_step is not None:
                on_step(step, state, after)
            state, step = after, step + 1
        return Samples(state.x, nfe, int(forward_passes), state.mask_seeds)

    def ranking(self, shape: torch.Size, draws: Draws) -> Ranking:
        """In which order masks unmask from rows of nothing but masks, ``shape`` (B, L): a function of a state
        and its prediction, whose largest values (B, L) come first. At random, unless a sampler says how."""
        order = draws.order(0, shape[1])
        return lambda state, prediction: order

    def predict(self, state: State) -> Prediction:
        """Call the network once at the state's own times."""
        sigma = self.schedule.sigma(state.t).to(torch.float32)
        return self.denoiser.denoise(state.x, sigma, state.mask_seeds)

    def unmask(
        self,
        step: int,
        state: State,
        where: Tensor,
        prediction: Prediction,
        draws: Draws,
        *,
        greedy: Tensor | bool = False,
        noted: Tensor | None = None,
    ) -> State:
        """Write tokens at the positions ``where`` (B, L) bool, drawn from ``prediction`` of the same rows."""

        def distribution(rows: Tensor, columns: Tensor) -> Tensor:
            return prediction.at(rows * where.shape[1] + columns)

        return self.write(
            step, state, where, distribution, prediction.vocab_size, draws, greedy=greedy, noted=noted
        )

    def write(
        self,
        step: int,
        state: State,
        where: Tensor,
        distribution: TokenDistribution,
        vocab_size: int,
        draws: Draws,
        *,
        greedy: Tensor | bool = False,
        noted: Tensor | None = None,
    ) -> State:
        """Write tokens at the positions ``where`` (B, L) bool, drawn from ``distribution``.

        The distribution is asked about these positions alone and in chunks: nothing of size (B, L, V)
        exists. Where ``greedy`` holds, for all rows or row by row (B,), the likeliest token is taken instead
        of a draw. ``noted`` (B, L) float64 takes the log-probabilities, temperature and nucleus included, of
        what was written.
        """
        x = state.x.clone()
        for rows, columns in chunks(where, vocab_size):
            log_x_theta = distribution(rows, columns)
            if greedy is True:
                tokens = log_x_theta.argmax(-1)
            else:
                tokens = draws.tokens(step, self.token_distribution(log_x_theta), rows, columns)
                if isinstance(greedy, Tensor):
                    tokens = torch.where(greedy[rows], log_x_theta.argmax(-1), tokens)
            x[rows, columns] = tokens
            if noted is not None:
                noted[rows, columns] = (
                    self.token_distribution(log_x_theta).gather(1, tokens[:, None]).squeeze(1)
                )
        return replace(state, x=x)

    def token_distribution(self, log_x_theta: Tensor) -> Tensor:
        """Log-probabilities (N, V), float64, that tokens are drawn from: temperature, then nucleus."""
        log_probs = log_x_theta.double()
        if self.settings.temperature != 1:
            log_probs = temper(log_probs, self.settings.temperature)
        if self.settings.p_nucleus < 1:
            log_probs = nucleus(log_probs, self.settings.p_nucleus)
        return log_probs

    def refresh(self, step: int, state: State, where: Tensor, draws: Draws) -> State:
        """Draw new noise for the masks ``where`` (B, L) bool; nothing for models without mask noise."""
        if state.mask_seeds is None or not self.settings.reset:
            return state
        return replace(
            state, mask_seeds=self.denoiser.refresh_seeds(state.mask_seeds, where, draws.cond_keys(step))
        )
