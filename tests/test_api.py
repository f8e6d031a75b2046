"""Models outside the command line: the example of the module, what is stored, likelihoods, mistakes."""

from __future__ import annotations

import doctest
import itertools
import math
from pathlib import Path

import pytest
import torch

import api
from api import Model, load
from config.cli import compose_config
from tasks import MODES
from tests import test_ar
from tests.layouts import gpt2_like
from tests.test_algo import build


def words(folder: Path, algo: str) -> list[str]:
    return [
        "debug=fast",
        f"algo={algo}",
        f"data.cache_dir={folder}/cache",
        f"checkpointing.save_dir={folder}/{algo}",
        f"eval.generated_samples_path={folder}/result.json",
        f"eval.checkpoint_path={folder}/{algo}/checkpoints/last.ckpt",
        f"export.path={folder}/exported",
        "trainer.precision=32",
        "trainer.enable_progress_bar=False",
        "trainer.num_sanity_val_steps=0",
        "eval.generate_samples=False",
        "trainer.max_steps=3",
        "training.ema=0.5",
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after three steps on real text, as a file and exported."""
    path = tmp_path_factory.mktemp("api")
    for mode in ("train", "export"):
        cfg = compose_config([*words(path, "imdm"), f"mode={mode}"], warn=False)
        MODES[mode](cfg)
    return path


def checkpoint(folder: Path) -> str:
    return str(folder / "imdm" / "checkpoints" / "last.ckpt")


def test_the_example_runs(folder: Path) -> None:
    text = api.__doc__.replace("outputs/pydoc/first/checkpoints/last.ckpt", checkpoint(folder))
    names: dict[str, object] = {}
    results = [eval_last(example.source, names) for example in doctest.DocTestParser().get_examples(text)]
    four, begun, filled, perplexity, (continued,), (blank,) = results[2:]
    assert len(four) == 4 and all(isinstance(text, str) for text in four)
    assert len(begun) == 4 and all(text.startswith("[BOS]the ") for text in begun)
    assert len(filled) == 1 and filled[0].endswith(" of the list[EOS]") and "[MASK]" not in filled[0]
    assert 1 < perplexity < 1000 and 0 < continued < 200 and 0 < blank < 100


def eval_last(source: str, names: dict[str, object]) -> object:
    try:
        return eval(source, names)
    except SyntaxError:
        return exec(source, names)


def test_the_modes_write_the_same(folder: Path) -> None:
    more = [
        "mode=sample_eval",
        "sampling.steps=4",
        "sampling.num_sample_batches=1",
        "sampling.prompt=a __ c<end>",
    ]
    result = MODES["sample_eval"](compose_config([*words(folder, "imdm"), *more], warn=False))
    model = load(checkpoint(folder), device="cpu")
    assert model.sample(8, 4, prompt="a __ c<end>") == result["generated_seqs"]
    texts, tokens = model.sample(8, 4, prompt=["a __ c<end>", "b"], return_tokens=True)
    assert texts[:8] == result["generated_seqs"] and all(text.startswith("[BOS]b") for text in texts[8:])
    assert [len(row) for row in tokens] == [8] * 8 + [32] * 8


def test_a_folder_is_the_averaged_checkpoint(folder: Path) -> None:
    file, exported = load(checkpoint(folder)), load(str(folder / "exported"), trainer__precision="32")
    assert file.sample(2, 4) == exported.sample(2, 4)
    raw = load(checkpoint(folder), use_ema=False)
    nlls = [model.nll(["the list"])[0] for model in (file, exported, raw)]
    assert nlls[0] == pytest.approx(nlls[1], rel=1e-6) and abs(nlls[0] - nlls[2]) > 1e-4 * nlls[0]
    assert load(checkpoint(folder), model__softcap=50.0).module.config.model.softcap == 50


def test_calls_leave_nothing_behind(folder: Path) -> None:
    model = load(checkpoint(folder))
    before = model.sample(2, 4)
    inner = "a" * (model.module.config.model.length - 2)  # samples are whole rows, with bos written out
    assert model.nll([f"[BOS]{inner}[EOS]"]) == model.nll([inner])
    cold = model.sample(2, 4, temperature=0.01)
    assert (
        cold != before != model.sample(2, 4, seed=5)
        and model.sample(2, 4, predictor="first_hitting") != before
    )
    model.nll(["a"], seed=9)
    assert model.sample(2, 4) == before == model.sample(2, 4, batch_size=1)


def test_exact_likelihood_of_an_autoregressive_model() -> None:
    """The probabilities of all words of 2 free symbols behind bos and in front of eos sum to that of eos."""
    module = test_ar.build()
    model, symbols = Model(module), ["0", "1", "2", "[BOS]"]
    free = [" ".join(word) for word in itertools.product(symbols, repeat=2)]
    total = sum(math.exp(-nll) for nll in model.nll(free))
    paths = torch.tensor(list(itertools.product(range(4), repeat=2)))
    seen = torch.cat((torch.full((16, 1), 3), paths, torch.full((16, 1), 3)), 1)
    nll = module.objective.token_log_probs(module.backbone, seen, torch.ones_like(seen)).double().sum(1)
    assert total == pytest.approx(float(nll.neg().exp().sum()), rel=1e-5) and 0 < total < 1
    scores = dict(zip(free, model.nll(free), strict=True))
    assert model.perplexity(["0 1", "2 2"]) == pytest.approx(math.exp((scores["0 1"] + scores["2 2"]) / 6))


def test_the_bound_of_a_masked_model() -> None:
    """By number of masks a row of one token is always masked: its NELBO is its negative log-likelihood."""
    module = build("algo=mdlm", "eval.nelbo=count")
    xt = torch.tensor([[module.mask_id]])
    log_probs = module.denoiser.denoise(xt, torch.zeros(1)).full()[0, 0].detach().double()
    assert Model(module).nll(["7"], draws=3) == pytest.approx([-float(log_probs[7])], rel=1e-5)
    more = Model(module).nll(["7 3 5", "1"], draws=40)
    assert (
        more
        == Model(module).nll(["7 3 5", "1"], draws=40)
        != Model(module).nll(["7 3 5", "1"], draws=40, seed=2)
    )


@pytest.mark.parametrize("algo", ["mdlm", "ar", "duo_base"])
def test_what_a_model_of_gpt2s_layout_wrote_has_a_perplexity(algo: str, tmp_path: Path) -> None:
    """Its bos is its eos and unknown token, and [PAD] has the mask's id."""
    tokenizer = f"data.tokenizer_name_or_path={gpt2_like(tmp_path)}"
    module = build(f"algo={algo}", "data=openwebtext", "data.vocab_size=null", tokenizer, "model.length=40")
    model = Model(module)
    texts = model.sample(4, 8, prompt="the ____" if algo == "ar" else "the ____ of")
    assert all(text.startswith("<|endoftext|>the") for text in texts)
    for written in (texts, model.sample(4, 8)):
        assert 1 < model.perplexity(written, draws=2) < 1e6
    assert model._row(texts[0]) == texts[0].tokens.tolist(), "the very tokens"
    assert 1 < model.perplexity([str(text) for text in texts], draws=2) < 1e6, "or those of the text"
    for text in ("the [PAD] token", "first<|endoftext|>second", "half \ud83d of"):
        assert 1 < model.perplexity([text], draws=2) < 1e6
    assert model._row("a[PAD]<|endoftext|>")[0] == model._row("a")[0] == 258
    assert model.tokenizer.decode(model._row("a[PAD]")[1:-1]) == "a[PAD]", "letters"
    assert model._row("<|endoftext|>ab<|endoftext|>") == [258, *model._row("ab")[1:-1], 258]
    assert len(model._row("<|endoftext|>" + "x" * 60)) == 40, (
        "cut: its tokens need not be those that wrote it"
    )
    with pytest.raises(ValueError, match="has 62 tokens; give 1 to 40"):
        model._row("x" * 60)


def test_mistakes_are_one_line(folder: Path) -> None:
    model, path = load(checkpoint(folder)), checkpoint(folder)
    (folder / "none").mkdir(exist_ok=True)
    cases = (
        (lambda: load("x.ckpt"), "path=x.ckpt: no such file"),
        (lambda: load(str(folder / "none")), "path=.*: a folder without a model's weights"),
        (lambda: load(path, sampling__foo=3), "sampling.foo: unknown key"),
        (lambda: load(path, sampling__temperature=-1.0), "sampling.temperature=-1.0: out of range"),
        (lambda: load(path, model__n_heads=4), "eval.checkpoint_path=.*; use model.n_heads=2"),
        (lambda: model.sample(prompt="T_"), "prompt=T_: the tokenizer does not know 'T'"),
        (lambda: model.sample(temperature=-1.0), "sampling.temperature=-1.0: out of range"),
        (
            lambda: model.sample(predictor="autoregressive"),
            "sampling.predictor=autoregressive: not for absorbing",
        ),
        (lambda: model.nll(["a" * 31]), "text=a+: has 33 tokens; give 1 to 32"),
    )
    for call, message in cases:
        with pytest.raises(ValueError, match=f"^{message}") as error:
            call()
        assert "\n" not in str(error.value)
