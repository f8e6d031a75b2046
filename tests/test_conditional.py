"""Text written into what is given: its distribution by enumeration, what never changes, prompts, prefixes,
the modes.

Empirical distributions are judged by ``tv_noise`` (see tests/worlds.py). Seeds are fixed: no result flickers.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from algorithms.mdlm import MDLM
from algorithms.objective import BoundDenoiser, Context
from config.cli import compose_config
from config.run import check
from data.dataset import TokenDataset
from diffusion.parameterization import Prediction
from generation import Generator
from metrics import sample_entropy
from samplers import Samples, sampler_names
from samplers.base import State
from tasks.prompts import encode_prompt, read_prompts, reference_rows, starts_of_prompts
from tests import test_ar
from tests.layouts import gpt2_like
from tests.test_algo import LENGTH, MASKED, build
from tests.test_training import run
from tests.worlds import ExactDenoiser, World, random_probs, total_variation, tv_noise

PREDICTORS = sampler_names()
NUM_SAMPLES = 8_000


class WorldObjective(MDLM):
    """MDLM whose answers are those of the exact denoiser of a world, whatever the network says."""

    def __init__(self, world: World) -> None:
        super().__init__(None, Context(world.vocab_size, world.mask_id))
        self.exact = ExactDenoiser(world)

    def denoise(
        self, backbone: Any, xt: Tensor, sigma: Tensor, mask_seeds: Tensor | None = None
    ) -> Prediction:
        return self.exact.denoise(xt, sigma, mask_seeds)


def world_model(world: World, *overrides: str) -> Generator:
    """The exact denoiser of a world as a model that samples."""
    length = f"model.length={world.length}"
    config = compose_config(["algo=mdlm", "data=synthetic-align", length, *overrides])
    return Generator(BoundDenoiser(WorldObjective(world), torch.nn.Linear(1, 1)), config)


def given_distribution(world: World, start: Tensor) -> Tensor:
    """The data distribution given what ``start`` shows, over all visible words."""
    agrees = ((start == world.mask_id) | (world.sequences == start)).all(-1)
    distribution = torch.zeros_like(world.data_distribution)
    distribution[world.encode(world.words, world.num_symbols + 1)] = world.probs * agrees
    return distribution / distribution.sum()


# The distribution ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [("sampling.predictor=first_hitting",), ("sampling.predictor=ancestral", "sampling.order=spread")],
)
def test_any_positions_given_the_others_follow_their_distribution(words: tuple[str, ...]) -> None:
    world = World(random_probs(2, 4), mask_id=1)
    model = world_model(world, *words)
    values, far = world.symbols[[1, 0, 0, 1]].tolist(), 0
    for shown in itertools.product([False, True], repeat=4):
        start = torch.tensor([v if s else world.mask_id for v, s in zip(values, shown, strict=True)])
        samples = model.sample(NUM_SAMPLES, 4, batch_size=NUM_SAMPLES, given=start.repeat(NUM_SAMPLES, 1))
        distribution = given_distribution(world, start)
        assert total_variation(world.frequencies(samples.tokens).double(), distribution) < tv_noise(
            distribution, NUM_SAMPLES
        )
        assert (samples.nfe == 4 - sum(shown)).all()
        # Fixing the positions of unconditional samples afterwards would miss it.
        apart = world.sequences.where(start == world.mask_id, start)
        without = torch.zeros_like(distribution).index_add(
            0, world.encode(world.visible(apart), 3), world.probs
        )
        far += total_variation(without, distribution) > 2 * tv_noise(distribution, NUM_SAMPLES)
    assert far >= 4


@pytest.mark.parametrize("algo", MASKED)
@pytest.mark.parametrize("predictor", [*PREDICTORS, "spread"])
def test_given_positions_never_change(algo: str, predictor: str) -> None:
    if algo in ("im-sdtt", "im-redi") and predictor != "ancestral_cache":
        pytest.skip("the same denoiser as imdm")
    is_order = predictor == "spread"
    words = [f"sampling.predictor={'ancestral' if is_order else predictor}", "sampling.order=spread"]
    module = build(f"algo={algo}", *words[: 1 + is_order])
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(module.mask_id, (12, LENGTH), generator=generator)
    given[torch.rand(given.shape, generator=generator) < 0.6] = module.mask_id
    fixed, seen = given != module.mask_id, []

    def watch(step: int, before: State, after: State) -> None:
        x = after.x
        seen.append(bool((x[:, fixed.all(0)] == given[:, fixed.all(0)]).all()))
        seen.append(bool((x[fixed] == given[fixed]).all()))

    samples = module.generator.sample(12, 5, batch_size=12, given=given, on_step=watch)
    assert all(seen) and len(seen) > 4
    assert not (samples.tokens == module.mask_id).any() and (samples.tokens[fixed] == given[fixed]).all()
    parts = module.generator.sample(12, 5, batch_size=5, given=given)
    assert torch.equal(parts.tokens, samples.tokens)
    free = module.generator.sample(12, 5, given=torch.full_like(given, module.mask_id))
    assert torch.equal(free.tokens, module.generator.sample(12, 5).tokens)


def test_one_start_noise_for_all() -> None:
    module = build("algo=imdm", "sampling.fix_eps=True")  # the noise at the end is that at the start
    one, same, other = (module.generator.sample(6, 2, batch_size=4, start_seed=s) for s in (3, 3, 4))
    assert len(one.mask_seeds.unique(dim=0)) == 1 and torch.equal(one.mask_seeds, same.mask_seeds)
    assert not torch.equal(one.mask_seeds, other.mask_seeds) and len(one.tokens.unique(dim=0)) > 1


# Prompts ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer() -> Any:
    """A masked model of characters, 30 positions."""
    return build("data=text8", "data.vocab_size=null", "model.length=30", "algo=mdlm")


def words_tokenizer() -> Any:
    """Words that hold the space in front of them, as gpt2's do."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[E]", "the", "Ġthe", "Ġcat", "Ġis", "Ġa", "Ġ", "a", "_", "[M]"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = {"bos_token": "[E]", "eos_token": "[E]", "mask_token": "[M]"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def shown(module: Any, prompt: str) -> str:
    ids, is_end = encode_prompt(prompt, module, "prompt")
    special = {2: "<", 3: ">", 4: "?"}
    text = "".join(special.get(i) or module.tokenizer.decode([i]) for i in ids)
    return text + "!" * is_end


def test_blanks_and_ends(writer: Any) -> None:
    assert shown(writer, "the ____ is") == "<the ???? is"
    assert shown(writer, "__ a _<end>") == "<?? a ?>!"
    assert shown(writer, "a_<end> ") == "<a?>!"
    assert shown(writer, "a ") == "<a "  # a space is a token of its own here
    assert shown(writer, "[BOS]a[MASK]b") == "<a?b"
    starts = starts_of_prompts(writer, ["a_b<end>", "the"], key="prompt")
    assert starts.ends == (5, 0) and starts.given.shape == (2, 30)
    assert starts.given[1].tolist() == [2, 27, 15, 12] + [4] * 26
    samples = writer.generator.sample(4, 6, **starts.of(numbers := starts.numbers(0, 4)))
    kept = starts.kept(samples.tokens, numbers)
    assert numbers == [0, 1, 0, 1] and [len(row) for row in kept] == [5, 30, 5, 30]
    texts = writer.tokenizer.batch_decode(kept)
    assert texts[0].startswith("[BOS]a") and texts[0].endswith("b[EOS]") and texts[1].startswith("[BOS]the")


def test_the_space_in_front_of_a_blank_belongs_to_it(writer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "tokenizer", words_tokenizer())
    monkeypatch.setattr(writer, "mask_id", 9)
    assert encode_prompt("the cat __ a", writer, "prompt") == ([0, 1, 3, 9, 9, 5], False)
    assert encode_prompt("the cat ", writer, "prompt") == ([0, 1, 3], False)
    assert encode_prompt(r"the cat _\_", writer, "prompt") == ([0, 1, 3, 9, 8], False)


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("The T", "prompt=The T: the tokenizer does not know 'T'; write it like the text of the training"),
        ("a" * 30, f"prompt={'a' * 30}: has 31 tokens (bos and <end> counted), model.length=30; shorten it"),
        ("a" * 29, f"prompt={'a' * 29}: leaves nothing to write; put a blank like ____ into it"),
        ("abc<end>", "prompt=abc<end>: leaves nothing to write; put a blank"),
    ],
)
def test_prompts_that_cannot_be(writer: Any, prompt: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        starts_of_prompts(writer, [prompt], key="prompt")
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_tokenizers_without_special_tokens() -> None:
    module = build("algo=mdlm")
    assert encode_prompt("1 __ 3", module, "prompt") == ([1, 12, 12, 3], False)
    with pytest.raises(ValueError, match="^prompt=1 _<end>: the tokenizer has no token that ends a text"):
        encode_prompt("1 _<end>", module, "prompt")
    with pytest.raises(ValueError, match="^prompt=1 x: the tokenizer has no tokens for all of '1 x'"):
        encode_prompt("1 x", module, "prompt")


def test_an_autoregressive_model_goes_on_from_the_left() -> None:
    module = test_ar.build()
    starts = starts_of_prompts(module, ["1 2", "2 __"], key="prompt")
    texts = module.generator.sample(8, 1, **starts.of(starts.numbers(0, 8))).tokens
    assert (texts[::2, :3] == torch.tensor([3, 1, 2])).all() and (
        texts[1::2, :2] == torch.tensor([3, 2])
    ).all()
    for prompt in ("1 _ 2", "_ 2", "1 _<end>"):
        with pytest.raises(
            ValueError, match=f"^prompt={prompt}: an autoregressive model writes from the left"
        ):
            starts_of_prompts(module, [prompt], key="prompt")


def test_files_of_prompts(tmp_path: Path) -> None:
    lines, objects = tmp_path / "p.txt", tmp_path / "p.jsonl"
    lines.write_text("the __ \n\n a\n")
    objects.write_text('{"prompt": "a\\nb", "id": 1}\n{"prompt": "_"}\n')
    assert read_prompts(str(lines)) == ["the __ ", " a"] and read_prompts(str(objects)) == ["a\nb", "_"]
    lines.write_text(" \n")
    objects.write_text('{"prompt": "a"}\n{"text": "b"}\n')
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    problems = {
        "p.txt": "holds no prompt",
        "p.jsonl": "line 2 is no JSON object",
        "none": "no such file",
        "bytes": "cannot be read as text",
        "": "cannot be read as text",
    }
    for name, problem in problems.items():
        with pytest.raises(ValueError, match=f"^sampling.prompt_file=.*: {problem}.*; "):
            read_prompts(str(tmp_path / name))


def test_lines_of_prompts_end_with_a_line_feed_alone(tmp_path: Path) -> None:
    lines, objects = tmp_path / "p.txt", tmp_path / "p.jsonl"
    lines.write_bytes("\ufeffa\x0cb\u2028c\x85d\r\nsecond".encode())
    assert read_prompts(str(lines)) == ["a\x0cb\u2028c\x85d", "second"]
    objects.write_bytes('\ufeff{"prompt": "a\u2028\x85b"}\n'.encode())
    assert read_prompts(str(objects)) == ["a\u2028\x85b"]


def test_names_of_special_tokens_in_a_prompt_are_text(tmp_path: Path) -> None:
    """gpt2's layout: [PAD] has the mask's id, and bos is eos and the unknown token."""
    tokenizer = f"data.tokenizer_name_or_path={gpt2_like(tmp_path)}"
    module = build("data=openwebtext", "data.vocab_size=null", tokenizer, "algo=mdlm", "model.length=60")
    ids, _ = encode_prompt("x[PAD]<|endoftext|>y _", module, "prompt")
    assert ids[0] == 258 and ids.count(258) == 1 and ids.count(module.mask_id) == 1 and ids[-1] == 259
    assert module.tokenizer.decode(ids[1:-1]) == "x[PAD]<|endoftext|>y"
    assert encode_prompt("<|endoftext|>y", module, "prompt") == encode_prompt("y", module, "prompt")
    starts = starts_of_prompts(module, ["half \ud83d of _", "\ud83d\ude00_"], key="prompt")
    assert starts.report["prompts"] == ["half \ufffd of _", "\U0001f600_"]


# Prefixes -----------------------------------------------------------------------------------------


def test_reference_rows() -> None:
    tokens = np.arange(40).reshape(10, 4)
    packed, lengths = TokenDataset(tokens), np.array([4, 2, 3, 4, 1, 4, 2, 3, 4, 4])
    rows = reference_rows(packed, 6, 4)
    assert len(set(rows.tolist())) == 6 and rows.tolist() != sorted(rows.tolist())
    assert reference_rows(packed, 10, 4)[:6].tolist() == rows.tolist()  # more rows go on from the same ones
    assert set(reference_rows(TokenDataset(tokens, lengths), 7, 3)) == {0, 2, 3, 5, 7, 8, 9}
    with pytest.raises(
        ValueError, match="^cond_sampling.min_seq_len=5: no validation text is so long, .* 4 tok"
    ):
        reference_rows(packed, 1, 5)
    with pytest.raises(ValueError, match="^sampling.num_sample_batches=8 prefixes in all: .* 7 texts"):
        reference_rows(TokenDataset(tokens, lengths), 8, 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conditional")
    for algo in ("imdm", "ar"):
        run(folder, f"algo={algo}", "trainer.max_steps=2", f"checkpointing.save_dir={folder}/{algo}")
    return folder


def evaluate(folder: Path, algo: str, *words: str) -> dict[str, Any]:
    path = folder / "result.json"
    result = run(
        folder,
        f"algo={algo}",
        f"eval.checkpoint_path={folder}/{algo}/checkpoints/last.ckpt",
        f"eval.generated_samples_path={path}",
        "loader.eval_global_batch_size=6",
        *words,
    )
    assert json.loads(path.read_text()) == result
    return result


COND = (
    "mode=cond_sample_eval_with_tc", "cond_sampling.prefix_len=3", "cond_sampling.seq_len=6",
    "cond_sampling.min_seq_len=8", "cond_sampling.num_cont_per_prefix=3", "sampling.steps=4",
)  # fmt: skip


@pytest.mark.parametrize("algo", ["imdm", "ar"])
def test_the_mode(trained: Path, algo: str) -> None:
    result = evaluate(
        trained,
        algo,
        *COND,
        "sampling.duplicate=4",
        "eval.compute_generative_perplexity=True",
        f"eval.gen_ppl_eval_model_name_or_path={trained}/ar/checkpoints/last.ckpt",
    )
    official = {"generative_ppl", "entropy", "generated_seqs", "tc", "total_generation_times", "seq_len"}
    assert official <= result.keys() and result["generative_ppl"] > 1 and result["tc"] > 0
    assert (result["seq_len"], result["prefix_len"], result["length"]) == (6, 3, 8)
    assert (result["num_samples"], len(result["prefixes"]), result["tc_groups"]) == (36, 12, 1)
    rows = torch.tensor([[int(word) for word in text.split()] for text in result["generated_seqs"]])
    prefixes = [[int(word) for word in text.split()] for text in result["prefixes"]]
    assert rows.shape == (36, 6) and rows[:, :3].tolist() == [p for p in prefixes for _ in range(3)]
    assert all(len(set(prefix)) == 1 for prefix in prefixes)  # as the data are
    assert len({tuple(prefix) for prefix in prefixes}) > 1 and len(rows[:3].unique(dim=0)) == 3
    assert result["entropy"] == pytest.approx(float(sample_entropy(rows).mean()))
    assert result["tc_joint_entropy"] <= result["tc_limit"] == 2


def test_what_seeds_decide(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, start_seeds = Generator.sample, []

    def sample(self: Generator, *args: Any, **kwargs: Any) -> Samples:
        start_seeds.append(kwargs["start_seed"])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Generator, "sample", sample)
    one, other, fixed = (
        evaluate(trained, "imdm", *COND, "sampling.num_sample_batches=1", *more)
        for more in ((), ("seed=2",), ("cond_sampling.fix_seed=7",))
    )
    assert one["prefix_rows"] == other["prefix_rows"] == fixed["prefix_rows"] and one["tc"] == 0.0
    assert one["generated_seqs"] != other["generated_seqs"]
    assert (one["fix_seed"], fixed["fix_seed"]) == (-1, 7)
    assert start_seeds == [None] * 6 + [7] * 3  # three batches each


def test_sample_eval_with_prompts(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("1 2\n_ 5 5\n3 ___ 3\n")
    file = f"sampling.prompt_file={tmp_path}/p.txt"
    result = evaluate(trained, "imdm", "mode=sample_eval", "sampling.steps=1,4", file)["runs"][1]
    rows = [text.split() for text in result["generated_seqs"]]
    assert result["prompts"] == ["1 2", "_ 5 5", "3 ___ 3"] and len(rows) == 12
    for first, second, third in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert first[:2] == ["1", "2"] and second[1:3] == ["5", "5"] and third[::4] == ["3", "3"]
    groups = evaluate(
        trained, "imdm", "mode=sample_eval_with_tc", "sampling.steps=4", "sampling.duplicate=3",
        "sampling.prompt=1 1 1 1 1 1 1 _",
    )  # fmt: skip
    assert groups["tc"] == pytest.approx(0, abs=1e-9)  # one free token depends on no other
    with pytest.raises(
        ValueError, match="^sampling.prompt_file=.*: its 3 prompts are more than the 2 samples"
    ):
        evaluate(
            trained,
            "imdm",
            "mode=sample_eval",
            file,
            "loader.eval_batch_size=2",
            "sampling.num_sample_batches=1",
        )


# Settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "cond_sampling.prefix_len=50: leaves nothing to write of model.length=32; use a smaller one"),
        (("prefix_len=0",), "cond_sampling.prefix_len=0: "),
        (("prefix_len=10", "seq_len=10"), "cond_sampling.seq_len=10: keeps nothing behind"),
        (("prefix_len=10",), "cond_sampling.seq_len=100: only 32 tokens are written; use at most 32"),
        (("prefix_len=10", "seq_len=32"), "cond_sampling.min_seq_len=1024: no validation block is so long"),
        (
            ("prefix_len=10", "seq_len=32", "min_seq_len=9"),
            "cond_sampling.min_seq_len=9: lets in texts shorter",
        ),
    ],
)
def test_settings_that_cannot_hold(words: tuple[str, ...], message: str) -> None:
    base = ["debug=fast", "mode=cond_sample_eval_with_tc", "eval.checkpoint_path=x"]
    with pytest.raises(ValueError) as error:
        compose_config([*base, *(f"cond_sampling.{word}" for word in words)], warn=False)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_prompt_is_typed_as_it_is() -> None:
    for prompt in ("the ____ is", "it's, {so} [x]: 5", r"a\_b", "a=b <end>", "5"):
        cfg = compose_config([f"sampling.prompt={prompt}", "mode=sample_eval", "eval.checkpoint_path=x"])
        assert cfg.sampling.prompt == prompt
    with pytest.raises(ValueError, match="^sampling.prompt_file=b: sampling.prompt is given as well"):
        compose_config(["sampling.prompt=a", "sampling.prompt_file=b"], warn=False)


def test_settings_without_effect_are_told() -> None:
    def told(*words: str) -> str:
        cfg = compose_config(["debug=fast", "eval.checkpoint_path=x", *words], warn=False)
        return " ".join(check(cfg))

    assert "sampling.prompt has no effect in mode=train" in told("sampling.prompt=a")
    assert "cond_sampling.seq_len has no effect in mode=sample_eval" in told(
        "mode=sample_eval", "cond_sampling.seq_len=9"
    )
    valid = ("mode=cond_sample_eval_with_tc", "model.length=1024", "cond_sampling.fix_seed=1")
    assert "cond_sampling.fix_seed has no effect on a model" in told("algo=mdlm", *valid)
    assert told("algo=imdm", *valid) == ""
