"""Generative perplexity: Hugging Face models and our AR checkpoints as judges, in every mode that has one."""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_algo import LargestTensor
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import tasks.scoring
import tasks.weights
from config.cli import compose_config
from data.tokenizers import get_tokenizer
from errors import UserError
from metrics import TextScores, counted_tokens, score_texts
from models.featurizer import Featurizer
from models.scorer import CausalLM
from tasks import MODES
from tasks.scoring import CheckpointScorer, NotFromHub, load_scorer
from tests import test_ar
from tests.layouts import gpt2_like
from tests.test_algo import build

pytestmark = pytest.mark.slow

END = "<|endoftext|>"
TEXTS = [
    "Infinite masks carry their own random state.",
    f"{END}one text{END}another one{END}",
    "a",
    "",
    f"Two documents.{END}The second.",
    "[CLS] special tokens of others stay [SEP]",
    "A longer text, which does not fit into a context of sixteen tokens, has to be cut or read in windows.",
]


def save(folder: Path, model: PreTrainedModel) -> str:
    """A folder as on the hub: a model, and a byte-level BPE with gpt2's one special token and no padding."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=END, eos_token=END).save_pretrained(folder)
    model.save_pretrained(folder)
    return str(folder)


def gpt2(positions: int = 128) -> GPT2LMHeadModel:
    """Random weights, large enough that every token's probability is its own."""
    config = GPT2Config(
        vocab_size=300, n_positions=positions, n_embd=16, n_layer=2, n_head=2, initializer_range=0.5,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return GPT2LMHeadModel(config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save(tmp_path_factory.mktemp("gpt2"), gpt2())


def directly(scorer: CausalLM, text: str) -> tuple[float, int]:
    """Summed nll and number of counted tokens, one text at a time, from all logits."""
    ids = torch.tensor(scorer.tokenizer(text)["input_ids"], dtype=torch.int64)
    if len(ids) < 2:
        return 0.0, 0
    counts = counted_tokens(ids, scorer.tokenizer.eos_token_id)
    with torch.no_grad():
        log_probs = scorer.model(ids[None]).logits[0, :-1].double().log_softmax(-1)
    nll = -log_probs.gather(1, ids[1:, None])[:, 0]
    return float(nll[counts].sum()), int(counts.sum())


def assert_direct(scores: TextScores, scorer: CausalLM) -> None:
    expected = [directly(scorer, text) for text in TEXTS]
    assert scores.nll.tolist() == pytest.approx([nll for nll, _ in expected], rel=1e-5)  # float32
    assert scores.tokens.tolist() == [tokens for _, tokens in expected]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8])
def test_scores_are_those_of_each_text_alone(folder: str, batch_size: int) -> None:
    scorer = load_scorer(folder, "auto")
    scores = score_texts(TEXTS, scorer, batch_size=batch_size, max_tokens=None)
    assert_direct(scores, scorer)
    assert scores.perplexity == pytest.approx(math.exp(scores.nll.sum() / scores.tokens.sum()))
    assert (scorer.name, scorer.dtype, scorer.context, scorer.eos_id) == (folder, "float32", 128, 0)


def test_of_the_own_eos_the_first_counts(folder: str) -> None:
    scorer = load_scorer(folder, "auto")
    texts = ["ab", f"ab{END}", f"ab{END}{END}", f"{END}ab", f"{END}ab{END}", END, END * 2]
    scores = score_texts(texts, scorer, batch_size=8, max_tokens=None)
    pieces = len(scorer.tokenizer("ab")["input_ids"])
    assert scores.tokens.tolist() == [pieces - 1, pieces, pieces, pieces, pieces, 0, 0]
    nll = scores.nll.tolist()  # the last bits depend on the place in a batch
    assert nll[1] == pytest.approx(nll[2], rel=1e-5) and nll[3] == pytest.approx(nll[4], rel=1e-5)


def test_cut_and_windows(tmp_path: Path, folder: str) -> None:
    """A context of 16: a text of n tokens is windows of 16 that share one, each predicted from its start."""
    scorer = load_scorer(save(tmp_path, gpt2(positions=16)), "auto")
    whole = score_texts(TEXTS[-1:], scorer, batch_size=2, max_tokens=None)
    ids = torch.tensor(scorer.encode(TEXTS[-1:], None)[0])
    assert len(ids) > 40 and int(whole.tokens) == len(ids) - 1
    parts = [ids[start : start + 16] for start in range(0, len(ids) - 1, 15)]
    everything = [torch.ones(1, len(part), dtype=torch.bool) for part in parts]
    nll = [scorer.token_nll(part[None], mask).sum() for part, mask in zip(parts, everything, strict=True)]
    assert float(whole.nll) == pytest.approx(float(sum(nll)), rel=1e-5)
    cut = score_texts(TEXTS[-1:], scorer, batch_size=2, max_tokens=16)
    assert float(cut.nll) == pytest.approx(float(nll[0]), rel=1e-5) and int(cut.tokens) == 15


def test_logits_of_a_chunk_are_all_that_is_in_memory() -> None:
    """Wide head: at most a chunk (and its softmax) is alive, and the numbers are those of the full logits."""
    config = GPT2Config(
        vocab_size=4000, n_positions=64, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    scorer = CausalLM(GPT2LMHeadModel(config), get_tokenizer("text8"), "wide", chunk_elements=2**16)
    ids = torch.randint(4000, (4, 64), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(64) < torch.tensor([64, 50, 3, 20])[:, None]
    with LargestTensor() as seen:
        nll = scorer.token_nll(ids, mask)
    assert seen.largest <= 2**16 < 4 * 64 * 4000 / 8
    with torch.no_grad():
        logits = scorer.model(input_ids=ids).logits[:, :-1]
    full = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    torch.testing.assert_close(nll, full * mask[:, 1:], rtol=1e-5, atol=1e-5)


def test_a_model_that_scales_its_logits_is_asked_for_them(tmp_path: Path) -> None:
    config = GraniteConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=128, logits_scaling=7.0, initializer_range=0.5,
        bos_token_id=0, eos_token_id=0, pad_token_id=None,
    )  # fmt: skip
    scorer = load_scorer(save(tmp_path, GraniteForCausalLM(config)), "auto")
    assert scorer.head is None
    assert_direct(score_texts(TEXTS, scorer, batch_size=3, max_tokens=None), scorer)


def test_precision_is_that_of_the_files_or_as_asked(tmp_path: Path, folder: str) -> None:
    stored = save(tmp_path, gpt2().bfloat16())
    assert load_scorer(stored, "auto").dtype == "bf16" and load_scorer(stored, "float32").dtype == "float32"
    assert load_scorer(folder, "bf16").dtype == "bf16"
    half = load_scorer(save(tmp_path / "half", gpt2().half()), "auto")
    assert half.dtype == "float32"
    scores = [
        score_texts(TEXTS, load_scorer(stored, dtype), batch_size=3, max_tokens=None)
        for dtype in ("auto", "float32")
    ]
    assert scores[0].perplexity == pytest.approx(scores[1].perplexity, rel=0.05)  # 8 bits of mantissa
    assert scores[0].perplexity != scores[1].perplexity


def test_what_cannot_judge_is_one_line(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks.scoring, "hub_reachable", lambda: False)
    both_ways = BertConfig(
        vocab_size=300, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        initializer_range=0.5,
    )  # fmt: skip
    save(tmp_path / "bert", BertLMHeadModel(both_ways))
    save(tmp_path / "part", gpt2())
    weights = load_file(tmp_path / "part" / "model.safetensors")
    del weights["transformer.h.0.mlp.c_fc.weight"]
    save_file(weights, tmp_path / "part" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "empty").mkdir()
    for name, words in [
        (str(tmp_path / "bert"), "no causal model"),
        (str(tmp_path / "part"), "lack transformer.h.0.mlp.c_fc.weight"),
        (str(tmp_path / "empty"), "no causal model can be read there"),
        (str(tmp_path / "nowhere"), "no such file or folder"),
        (str(tmp_path / "nowhere.ckpt"), "no such file"),
        (str(tmp_path / "part" / "config.json"), "cannot be read as a checkpoint"),
        ("gpt2-lagre-of-nobody", "hub cannot be reached"),
    ]:
        with pytest.raises(ValueError, match=words) as caught:
            load_scorer(name, "auto")
        assert str(caught.value).startswith(f"eval.gen_ppl_eval_model_name_or_path={name}: ")
        assert "\n" not in str(caught.value)
        assert isinstance(caught.value, NotFromHub) == ("nobody" in name)


def test_a_tokenizer_of_another_model_is_told(tmp_path: Path) -> None:
    small = GPT2Config(
        vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=0
    )
    scorer = load_scorer(save(tmp_path, GPT2LMHeadModel(small)), "auto")
    with pytest.raises(ValueError, match="its model knows 50 ids"):
        scorer.encode(TEXTS, None)


# The modes -----------------------------------------------------------------------------------------

SMALL = (
    "debug=fast", "algo=mdlm", "trainer.accelerator=cpu", "trainer.precision=32",
    "trainer.enable_progress_bar=False",
)  # fmt: skip


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    places = (f"data.cache_dir={folder}/cache", f"checkpointing.save_dir={folder}/run")
    cfg = compose_config([*SMALL, *places, *overrides], warn=False)
    return MODES[cfg.mode](cfg)


def test_documented_defaults() -> None:
    official = compose_config(warn=False).eval
    assert official.compute_generative_perplexity and official.gen_ppl_cut
    assert not official.compute_perplexity_on_sanity
    assert (official.gen_ppl_eval_model_name_or_path, official.perplexity_batch_size) == ("gpt2-large", 8)
    for offline in ("debug=fast", "debug=overfit", "data=pydoc", "data=synthetic", "experiment=pydoc_mdlm"):
        assert not compose_config([offline], warn=False).eval.compute_generative_perplexity
    assert compose_config(["data=pydoc", *judged_by("x")], warn=False).eval.compute_generative_perplexity


def judged_by(name: str) -> tuple[str, str]:
    return "eval.compute_generative_perplexity=True", f"eval.gen_ppl_eval_model_name_or_path={name}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An MDLM and an AR of 35 characters, a few steps old, each in its folder."""
    root = tmp_path_factory.mktemp("trained")
    for algo in ("mdlm", "ar"):
        quick = ("eval.generate_samples=False", "optim.lr=1e-2", "trainer.max_steps=20")
        run(root / algo, f"algo={algo}", *quick, "trainer.val_check_interval=20")
    return {algo: root / algo / "run" / "checkpoints" / "last.ckpt" for algo in ("mdlm", "ar")}


def sample(trained: dict[str, Path], path: Path, *overrides: str) -> dict[str, Any]:
    evaluate = (f"eval.checkpoint_path={trained['mdlm']}", f"eval.generated_samples_path={path}")
    return run(path.parent, "algo=mdlm", "mode=sample_eval", *evaluate, *overrides)


def test_sample_eval_reports_perplexity_beside_entropy(
    trained: dict[str, Path], tmp_path: Path, folder: str
) -> None:
    path = tmp_path / "samples.json"
    result = sample(trained, path, *judged_by(folder), "eval.perplexity_batch_size=3")
    assert json.loads(path.read_text()) == result
    for one in result["runs"]:
        scores = score_texts(one["generated_seqs"], load_scorer(folder, "auto"), batch_size=8, max_tokens=32)
        assert one["generative_ppl"] == pytest.approx(scores.perplexity, rel=1e-5)
        assert one["gen_ppl_tokens"] == int(scores.tokens.sum()) <= 8 * 31
        assert one["generative_ppl_interval"][0] < one["generative_ppl"] < one["generative_ppl_interval"][1]
        assert (one["gen_ppl_scorer"], one["gen_ppl_dtype"], one["gen_ppl_cut"]) == (folder, "float32", 32)
        assert one["entropy"] > 0 and len(one["generated_seqs"]) == 8 and list(one)[-1] == "generated_seqs"


def test_sample_eval_without_a_judge_and_judged_later(
    trained: dict[str, Path], tmp_path: Path, folder: str
) -> None:
    path, judged = tmp_path / "samples.json", tmp_path / "judged.json"
    plain = sample(trained, path)
    assert [one["generative_ppl"] for one in plain["runs"]] == [None, None]
    expected = sample(trained, judged, *judged_by(folder))
    later = run(
        tmp_path,
        "mode=gen_ppl_eval",
        f"eval.generated_samples_path={path}",
        f"eval.gen_ppl_eval_model_name_or_path={folder}",
        "model.length=64",  # the file knows the length of its samples
    )
    assert json.loads(path.read_text()) == later
    for one, other in zip(later["runs"], expected["runs"], strict=True):
        times = {"total_generation_times"}
        assert {k: v for k, v in one.items() if k not in times} == {
            k: v for k, v in other.items() if k not in times
        }


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "no such file"),
        ("{", "is no JSON"),
        ('{"a": 1}', "no list generated_seqs"),
        ('["a"]', "no list generated_seqs"),
        ('{"runs": []}', "no list generated_seqs"),
        ('{"generated_seqs": [1]}', "no list generated_seqs"),
        ('{"runs": {"generated_seqs": ["a"]}}', "no list generated_seqs"),
        ('{"runs": [[]]}', "no list generated_seqs"),
        ("[" * 200_000, "is no JSON"),
        ('{"generated_seqs": ["a"], "length": "abc"}', 'length="abc" is no whole number of 1 or more'),
        ('{"generated_seqs": ["a"], "length": -4}', "length=-4 is no whole number of 1 or more"),
        ('{"generated_seqs": ["a"], "length": true}', "length=true is no whole number of 1 or more"),
        ('{"generated_seqs": ["a"], "num_cont_per_prefix": 0}', "num_cont_per_prefix=0 is no whole number"),
        ('{"generated_seqs": ["a"], "entropy": "high"}', 'entropy="high" is no number'),
        ('{"generated_seqs": ["a"], "steps": {"a": 1}}', 'steps={"a": 1} is no whole number of 1 or more'),
        (
            '{"runs": [{"generated_seqs": ["a"]}, {"generated_seqs": ["a"], "steps": 0}]}',
            "run 2: steps=0 is no whole number",
        ),
    ],
)
def test_a_file_without_samples_is_one_line(tmp_path: Path, content: str | None, words: str) -> None:
    path = tmp_path / "samples.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=re.escape(words)) as caught:
        run(tmp_path, "mode=gen_ppl_eval", f"eval.generated_samples_path={path}")
    message = str(caught.value)
    assert message.startswith(f"eval.generated_samples_path={path}: ") and "; " in message
    assert "\n" not in message and (content is None or path.read_text() == content)


def test_half_surrogates_and_missing_numbers(tmp_path: Path, folder: str) -> None:
    """Half a pair is judged, and written, as U+FFFD; null stands for what is not known."""
    path = tmp_path / "samples.json"
    texts = ["some \ud800 words", "others \udc00\ud83d here"]
    content = {"steps": None, "length": None, "num_cont_per_prefix": None, "entropy": math.nan}
    path.write_text(json.dumps({**content, "prompts": texts, "generated_seqs": texts}))
    words = ("mode=gen_ppl_eval", f"eval.gen_ppl_eval_model_name_or_path={folder}")
    run(tmp_path, *words, f"eval.generated_samples_path={path}")
    found = json.loads(path.read_text(encoding="utf-8"))
    clean = ["some \ufffd words", "others \ufffd\ufffd here"]
    scores = score_texts(clean, load_scorer(folder, "auto"), batch_size=8, max_tokens=None)
    assert found["generative_ppl"] == pytest.approx(scores.perplexity, rel=1e-5)
    assert found["generated_seqs"] == found["prompts"] == clean
    assert found["entropy"] is None and found["length"] == 32


def test_a_wrong_judge_is_told_before_anything_is_sampled(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tasks.scoring, "hub_reachable", lambda: False)
    monkeypatch.setattr(
        sys.modules["tasks.sample_eval"], "build_evaluated", lambda cfg: pytest.fail("went on")
    )
    for name in ("gpt2-large-of-nobody", str(tmp_path / "nowhere")):
        with pytest.raises(ValueError, match="compute_generative_perplexity=False"):
            sample(trained, tmp_path / "samples.json", *judged_by(name))


def test_samples_survive_a_judge_that_fails(
    trained: dict[str, Path], tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(tasks.scoring, "score_texts", fails)
    with pytest.raises(torch.OutOfMemoryError):
        sample(trained, tmp_path / "samples.json", *judged_by(folder))
    (kept,) = json.loads((tmp_path / "samples.json").read_text())["runs"]
    assert kept["generative_ppl"] is None and len(kept["generated_seqs"]) == 8


def test_an_ar_checkpoint_judges_with_its_averaged_weights(trained: dict[str, Path], tmp_path: Path) -> None:
    scorer = load_scorer(str(trained["ar"]), "auto")
    tokenizer = get_tokenizer("text8")
    ids = torch.tensor([[2, 8, 9, 34, 3, 10, 3, 4, 5, 7]])
    (text,) = tokenizer.batch_decode(ids)
    assert text == "[BOS]ab [EOS]c[EOS][MASK][PAD][UNK]"
    readable = torch.where(ids == tokenizer.mask_token_id, tokenizer.unk_token_id, ids)
    assert (
        scorer.encode([text], None) == readable.tolist() and scorer.encode([text], 4) == ids[:, :4].tolist()
    )
    assert (scorer.context, scorer.eos_id, scorer.dtype) == (32, 3, "float32")
    assert load_scorer(str(trained["ar"]), "bf16").dtype == "bf16"

    texts = ["[BOS]the cat[EOS]", "[BOS]a[EOS]b[EOS]", "", "[BOS]", "x" * 40]
    scores = score_texts(texts, scorer, batch_size=2, max_tokens=None)
    assert scores.tokens.tolist() == [8, 3, 0, 0, 39]
    checkpoint = torch.load(trained["ar"], weights_only=True)
    module = scorer.module
    with torch.no_grad():
        for (_, parameter), average in zip(
            module.named_parameters(), checkpoint["ema"]["shadow_params"], strict=True
        ):
            parameter.copy_(average)
        module.ema = None
        logits = module.backbone(torch.tensor(scorer.encode(texts[:1], None)), None)[0, :-1]
        logits[:, module.mask_id] = -torch.inf
        nll = -logits.log_softmax(-1).gather(1, torch.tensor(scorer.encode(texts[:1], None)).T[1:])
    assert float(scores.nll[0]) == pytest.approx(float(nll.sum()), rel=1e-5)

    result = sample(trained, tmp_path / "samples.json", *judged_by(str(trained["ar"])), "sampling.steps=4")
    assert result["gen_ppl_scorer"] == str(trained["ar"]) and 1 < result["generative_ppl"] < 35 * 35


def test_an_ar_checkpoint_of_an_older_version_judges(trained: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = torch.load(trained["ar"], weights_only=True)
    for section, name in (("model", "attention"), ("model", "compile"), ("data", "streaming")):
        del checkpoint["config"][section][name]  # keys that came later
    torch.save(checkpoint, tmp_path / "older.ckpt")
    scores = [
        score_texts(["[BOS]the cat[EOS]"], load_scorer(str(path), "auto"), batch_size=1, max_tokens=None)
        for path in (trained["ar"], tmp_path / "older.ckpt")
    ]
    assert torch.equal(scores[0].nll, scores[1].nll)


def test_a_checkpoint_of_the_hub_scores_like_its_file(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks.weights, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *name, **how: str(trained["ar"]))
    scores = [
        score_texts(["[BOS]the cat[EOS]"], load_scorer(name, "auto"), batch_size=1, max_tokens=None)
        for name in (str(trained["ar"]), "owner/model/ar.ckpt")
    ]
    assert torch.equal(scores[0].nll, scores[1].nll)


def test_an_exported_ar_judges_like_its_checkpoint(trained: dict[str, Path], tmp_path: Path) -> None:
    texts = ["[BOS]the cat[EOS]", "[BOS]a[EOS]b[EOS]", "x" * 40]
    for algo, path in trained.items():
        place = (f"eval.checkpoint_path={path}", f"export.path={tmp_path}/{algo}")
        run(tmp_path, f"algo={algo}", "mode=export", *place)
    scores = [
        score_texts(texts, load_scorer(str(name), "auto"), batch_size=2, max_tokens=None)
        for name in (trained["ar"], tmp_path / "ar")
    ]
    torch.testing.assert_close(scores[0].nll, scores[1].nll, rtol=1e-5, atol=0)
    assert torch.equal(scores[0].tokens, scores[1].tokens)
    with pytest.raises(ValueError, match="a masked diffusion model"):
        load_scorer(str(tmp_path / "mdlm"), "auto")


def test_a_mask_in_a_text_does_not_make_all_texts_impossible(
    trained: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = (f"eval.checkpoint_path={trained['ar']}", f"export.path={tmp_path}/ar")
    run(tmp_path, "algo=ar", "mode=export", *place)
    scorers = [load_scorer(str(name), "auto") for name in (trained["ar"], tmp_path / "ar")]
    logger = logging.getLogger("imdm")
    before, logger.propagate = logger.propagate, True
    try:
        for scorer in scorers:
            texts = (["[BOS]the[MASK] cat[MASK]", "[BOS]dog"], ["[BOS]the[UNK] cat[UNK]", "[BOS]dog"])
            masked, unknown = (score_texts(t, scorer, batch_size=2, max_tokens=None) for t in texts)
            assert torch.equal(masked.nll, unknown.nll) and float(masked.nll.max()) < 200
            assert f"2 masks stand in the texts; {scorer.name}" in caplog.text
            caplog.clear()
    finally:
        logger.propagate = before


def test_names_that_an_ar_model_cannot_write_are_text(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """gpt2's layout: [PAD] has the mask's id, and the unknown token is eos, which is no word."""
    module = build(
        "algo=ar", "data=openwebtext", "data.vocab_size=null", "model.length=40",
        f"data.tokenizer_name_or_path={gpt2_like(tmp_path / 'gpt2')}",
    )  # fmt: skip
    scorer, end = CheckpointScorer(module, "own"), "<|endoftext|>"
    texts = [f"{end}a[PAD]b{end}", f"{end}ab{end}", "half \ud83d of"]
    ids = scorer.encode(texts, None)
    assert ids[0][0] == 258 and len(ids[0]) == 9
    assert ids[0][-1] == 258 and module.mask_id not in ids[0] and module.tokenizer.decode(ids[0]) == texts[0]
    assert len(ids[1]) == 4 and ids[1][0] == ids[1][-1] == 258
    assert scorer.encode(texts, 4)[0] == ids[0][:4]
    scores = score_texts(texts, scorer, batch_size=2, max_tokens=None)
    assert 1 < scores.perplexity < 1e4
    with pytest.raises(ValueError, match="^eval.gen_ppl_eval_model_name_or_path=own: its tokenizer cannot"):
        CheckpointScorer(test_ar.build(), "own").encode(["1 2", "words"], None)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(
    trained: dict[str, Path], tmp_path: Path, folder: str, value: float
) -> None:
    """By every mode that computes with them, in one line with the file and the first tensor."""
    broken = {algo: tmp_path / f"{algo}.ckpt" for algo in trained}
    for algo, path in trained.items():
        stored = torch.load(path, weights_only=True)
        where = stored["ema"]["names"].index("backbone.blocks.0.norm2.weight")
        stored["ema"]["shadow_params"][where][3] = value
        torch.save(stored, broken[algo])
    weights = (f"eval.checkpoint_path={broken['mdlm']}", f"eval.generated_samples_path={tmp_path}/r.json")
    modes = {
        "eval.checkpoint_path": [
            ("mode=ppl_eval",),
            ("mode=zero_shot", "zero_shot.datasets=text8"),
            ("mode=sample_eval",),
            ("mode=sample_eval_with_tc",),
            ("mode=export", f"export.path={tmp_path}/export"),
            ("mode=generate_reflow_dataset", "sampling.steps=2", f"reflow.save_path={tmp_path}/pairs"),
            ("mode=frontier", *judged_by(folder), f"frontier.checkpoints={broken['mdlm']}"),
        ],
        "training.finetune_path": [(f"training.finetune_path={broken['mdlm']}", "training.load_ema=True")],
        "eval.gen_ppl_eval_model_name_or_path": [("mode=sample_eval", *judged_by(str(broken["ar"])))],
    }
    problem = "backbone.blocks.0.norm2.weight has numbers that are not finite: "
    for key, commands in modes.items():
        for words in commands:
            with pytest.raises(UserError) as caught:
                run(tmp_path, *weights, *words)
            path = broken["ar" if "gen_ppl" in key else "mdlm"]
            assert str(caught.value).startswith(f"{key}={path}: {problem}"), words
    assert not (tmp_path / "r.json").exists()
    # The raw weights are finite: they can be evaluated.
    assert sample({"mdlm": broken["mdlm"]}, tmp_path / "r.json", "eval.disable_ema=True")["runs"]


def test_models_of_the_hub_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = gpt2()
    model.transformer.h[1].mlp.c_fc.weight.data[0, 0] = math.nan
    place = save(tmp_path, model)
    with pytest.raises(
        UserError, match=r"no causal model can be read there \(.*h.1.mlp.c_fc.weight has numbers"
    ):
        load_scorer(place, "auto")
    with pytest.raises(UserError, match=f"--featurizer={place}: h.1.mlp.c_fc.weight has numbers"):
        Featurizer(place, local_files_only=True)


def test_a_checkpoint_that_is_no_ar_cannot_judge(trained: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds a model of algo=mdlm"):
        load_scorer(str(trained["mdlm"]), "auto")
    foreign = torch.load(trained["ar"], weights_only=True)
    for config in (None, {}, {"algo": {}}, {"algo": "ar"}, {"algo": None}):
        torch.save(foreign | {"config": config}, tmp_path / "foreign.ckpt")
        with pytest.raises(UserError, match="is no checkpoint of this program"):
            load_scorer(str(tmp_path / "foreign.ckpt"), "auto")


def test_training_logs_perplexity_with_a_scorer_loaded_once(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []
    original = tasks.scoring.load_scorer
    monkeypatch.setattr(tasks.scoring, "load_scorer", lambda *a: loads.append(a[0]) or original(*a))
    result = run(tmp_path, *judged_by(folder))
    assert loads == [folder]
    for steps in (2, 4):
        kept = json.loads((tmp_path / "run" / "samples" / f"step6-T{steps}.json").read_text())
        assert result[f"val/gen_ppl_T{steps}"] == pytest.approx(kept["generative_ppl"], rel=1e-6)
        assert result[f"val/sample_entropy_T{steps}"] == pytest.approx(kept["entropy"], rel=1e-6)
        scorer = original(folder, "auto")
        scores = score_texts(kept["generated_seqs"], scorer, batch_size=8, max_tokens=32)
        assert kept["generative_ppl"] == pytest.approx(scores.perplexity, rel=1e-5)
    assert not list((tmp_path / "run" / "samples").glob("step0-*"))


def test_the_check_before_training_judges_when_asked(tmp_path: Path, folder: str) -> None:
    run(
        tmp_path, *judged_by(folder), "eval.compute_perplexity_on_sanity=True", "trainer.max_steps=1",
        "sampling.steps=1",
    )  # fmt: skip
    kept = json.loads((tmp_path / "run" / "samples" / "step0-T1.json").read_text())
    assert kept["generative_ppl"] > 1


def test_training_goes_on_without_the_hub_and_not_with_a_wrong_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tasks.scoring, "hub_reachable", lambda: False)
    caplog.set_level(logging.WARNING)
    result = run(tmp_path, *judged_by("gpt2-of-nobody"), "sampling.steps=2")
    assert sum("val/gen_ppl is not measured" in line for line in caplog.messages) == 1
    assert "val/sample_entropy_T2" in result and "val/gen_ppl_T2" not in result
    with pytest.raises(ValueError, match="no such file or folder"):
        run(tmp_path, *judged_by(str(tmp_path / "nowhere")))
