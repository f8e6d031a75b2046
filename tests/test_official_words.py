"""What users of the official programs type: which algorithm it means, what is dropped, what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import quick_compose
from omegaconf import DictConfig, OmegaConf

from config import cli
from config.algo import is_default
from config.cli import compose_clean, compose_config, finish_typed, read_command_line
from config.official import ALIASES, CLAIMS, DROPPED, VALUES
from config.run import all_keys
from errors import UserError

MDLM_ALGORITHM = {"subs": "mdlm", "d3pm": "d3pm", "sedd": "sedd", "ar": "ar"}


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("DIT_USE_COMPILE", raising=False)
    monkeypatch.setattr(cli, "_compose", quick_compose.compose)
    yield


def composed(typed: str) -> DictConfig:
    return compose_config(typed.split(), warn=False)


def complaint(typed: str) -> str:
    with pytest.raises(UserError) as caught:
        compose_config(typed.split(), warn=False)
    return str(caught.value)


# The algorithm ------------------------------------------------------------------------------------


@pytest.mark.parametrize("word", MDLM_ALGORITHM)
def test_parameterization_chooses_the_algorithm(word: str) -> None:
    cfg = composed(f"parameterization={word} backbone={'ar' if word == 'ar' else 'dit'}")
    assert cfg.algo.name == cfg.name == MDLM_ALGORITHM[word]
    assert not cfg.algo.time_conditioning, "MDLM's networks see the time when time_conditioning=True is typed"
    assert composed(f"time_conditioning=True parameterization={word}").algo.time_conditioning
    assert not is_default(cfg)


def test_mdlms_own_keys_mean_its_default(caplog: pytest.LogCaptureFixture) -> None:
    for typed in ("backbone=dit", "backbone=hf_dit", "diffusion=absorbing_state", "time_conditioning=False"):
        caplog.clear()
        assert compose_config([typed]).algo.name == "mdlm"
        assert any(line.startswith("algo=mdlm is taken, MDLM's default") for line in caplog.messages)
    assert composed("algo=imdm backbone=dit").algo.name == "imdm"
    assert composed("backbone=ar").algo.name == composed("model=small-ar").algo.name == "ar"
    tiny = composed("model=tiny-ar")
    assert (tiny.algo.name, tiny.model.name, tiny.model.hidden_size) == ("ar", "tiny", 512)
    assert composed("model=tiny-ar model.hidden_size=64").model.hidden_size == 64, "what is typed wins"
    assert composed("parameterization=subs experiment=pydoc_mdlm").algo.name == "mdlm"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "parameterization=subs algo=sedd",
            "parameterization=subs: contradicts algo=sedd; use algo=mdlm or algo=imdm",
        ),
        ("algo=duo parameterization=d3pm", "parameterization=d3pm: contradicts algo=duo; use algo=d3pm"),
        ("algo=mdlm backbone=ar", "backbone=ar: contradicts algo=mdlm; use algo=ar"),
        ("algo=mdlm model=small-ar", "model=small-ar: contradicts algo=mdlm; use algo=ar"),
        ("backbone=ar parameterization=subs", "parameterization=subs: contradicts algo=ar; use algo=mdlm"),
        ("parameterization=mean", "parameterization=mean: not in this program"),
        ("algo=imdm algo.parameterization=mean", "algo.parameterization=mean: contradicts algo=imdm"),
        (
            "algo.parameterization=subs",
            "algo.parameterization=subs: contradicts algo=duo_base; use algo=mdlm",
        ),
        ("experiment=pydoc_duo algo.subs_masking=True", "algo.subs_masking=true: contradicts algo=duo"),
        ("parameterization=d3pm subs_masking=True", "subs_masking=true: contradicts algo=d3pm"),
        ("algo=ar algo.causal_attention=False", "algo.causal_attention=false: contradicts algo=ar"),
        ("backbone=dimamba", "backbone=dimamba: not in this program, where it would change the results"),
        ("algo.backbone=unet", "algo.backbone=unet: not in this program"),
    ],
)
def test_words_that_name_different_algorithms(typed: str, message: str) -> None:
    assert complaint(typed).startswith(message)


def test_in_a_sweep_each_job_is_asked() -> None:
    jobs = list(read_command_line(["-m", "algo=imdm,duo", "algo.parameterization=subs"]).jobs())
    assert compose_clean(jobs[0]).algo.name == "imdm"
    with pytest.raises(UserError, match=r"algo\.parameterization=subs: contradicts algo=duo"):
        finish_typed(compose_clean(jobs[1]), jobs[1])
    named = [job.words for job in read_command_line(["-m", "parameterization=subs", "seed=1,2"]).jobs()]
    assert named == [["algo=mdlm", "seed=1"], ["algo=mdlm", "seed=2"]]


def test_what_agrees_is_harmless(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    typed = "algo=imdm algo.parameterization=subs algo.subs_masking=True algo.causal_attention=False"
    words = [*typed.split(), "algo.backbone=dit", "model.type=ddit"]
    assert compose_config(words) == compose_config(["algo=imdm"])
    assert caplog.messages == [
        "no meaning here, ignored: algo.backbone, algo.causal_attention, algo.parameterization, "
        "algo.subs_masking, model.type"
    ]


def test_whether_somebody_chose_the_algorithm() -> None:
    assert is_default(composed("")) and is_default(composed("model=tiny"))
    for typed in ("algo=duo_base", "+algo=imdm", "experiment=pydoc_imdm", "parameterization=ar"):
        assert not is_default(composed(typed))
    assert is_default(composed("").copy()) and not is_default(OmegaConf.create({}))


# Keys without a meaning ---------------------------------------------------------------------------


def test_the_harmless_value_is_dropped_and_another_refused() -> None:
    for pattern, values in DROPPED.items():
        key = pattern.replace("*temp", "model.temp").replace("callbacks.*", "callbacks.checkpoint_monitor")
        key = key.replace("*.is", "model.is").replace("*", "x")
        usual = composed("algo=mdlm")
        for value in values or ("anything",):
            assert composed(f"algo=mdlm {key}={value}") == usual, f"{key}={value}"
        if values:
            said = complaint(f"algo=mdlm {key}=something_else")
            assert said.startswith(f"{key}=something_else: not in this program, where it would change"), said


@pytest.mark.parametrize(
    "typed",
    [
        "is_di4c=True",
        "algo.is_di4c=True",
        "training.importance_sampling=True",
        "training.change_of_variables=True",
        "importance_sampling=True",
        "sampling.conditional=True",
        "cond_sampling.cond_type=random",
        "training.not_sampling_t=true",
        "prior=gaussian",
        "data.modality=images",
        "sampling.guid_weight=1.0",
        "model.tie_word_embeddings=True",
    ],
)
def test_a_value_that_changes_the_results_is_refused(typed: str) -> None:
    key = typed.partition("=")[0]
    assert complaint(f"algo=mdlm {typed}").startswith(f"{typed}: not in this program")
    assert "leave it out" in complaint(typed) and key in complaint(typed)


def test_keys_of_a_neighbouring_algorithm() -> None:
    usual = composed("algo=rectification")
    typed = "algo.T=512 algo.update_teacher_every=10000 algo.teacher_ema=False algo.linear_growth_dt=false"
    more = "algo.gamma_min=-4 algo.curriculum_start=-1 algo.use_linear_schedule=True"
    assert composed(f"algo=rectification {typed} {more}") == usual
    words = "algo.gumbel_tau_log10_start=-1 algo.curriculum_end=-1 algo.posterior_loss_weight=0.0"
    assert composed(f"algo=distillation {words}") == composed("algo=distillation")
    assert complaint("algo=imdm algo.update_teacher_every=5").startswith("algo.update_teacher_every: unknown")


# Other names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("sampling.num_sample_batches=0", "sampling.num_sample_batches", 0),
        ("algo=imdm algo.num_mask=-1", "algo.num_mask", 0),
        ("algo=imdm algo.loss_type=elbo", "training.loss_type", "nelbo"),
        ("algo=imdm algo.loss_type=low_var", "training.loss_type", "low_var"),
        ("algo=distillation algo.loss_type=kl-fwd", "algo.loss_type", "kl-fwd"),
        ("algo=imdm algo.ignore_bos=True", "training.ignore_bos", True),
        ("algo=duo algo.curriculum.top_k=-1", "algo.curriculum_top_k", 0),
        ("algo=duo algo.curriculum.end=7 algo.curriculum.start=3", "algo.curriculum_end", 7),
        ("sampling.predictor=ddpm_cache", "sampling.predictor", "ancestral_cache"),
        ("sampling.predictor=ddpm", "sampling.predictor", "ancestral"),
        ("sampling.noise_removal=True", "sampling.noise_removal", "greedy"),
        ("sampling.noise_removal=False", "sampling.noise_removal", "none"),
        ("noise=loglinear", "noise.name", "log-linear"),
        ("noise.type=cosine", "noise.name", "cosine"),
        ("algo=d3pm T=500", "algo.T", 500),
        ("noise.eps=0", "noise.eps", 1e-3),
        ("hydra.run.dir=./there", "checkpointing.save_dir", "./there"),
        ("hydra.run.dir=a checkpointing.save_dir=b", "checkpointing.save_dir", "b"),
        ("wandb.name=null", "name", "duo_base"),
        ("wandb.resume=must", "wandb.resume", "must"),
        ("wandb.mode=offline", "wandb.mode", "offline"),
        ("mode=generate_reflow_data eval.checkpoint_path=a", "reflow.perturbed_rect", False),
        (
            "mode=generate_reflow_data_with_perturbed_rect eval.checkpoint_path=a",
            "mode",
            "generate_reflow_dataset",
        ),
        ("mode=generate_reflow_data reflow.perturbed_rect=True eval.checkpoint_path=a", "mode", None),
        ("lr_scheduler=cosine_decay_warmup lr_scheduler.lr_min=1e-7", "lr_scheduler.min_lr", 1e-7),
        ("lr_scheduler=cosine_decay_warmup lr_scheduler.warmup_t=70", "lr_scheduler.num_warmup_steps", 70),
        ("lr_scheduler=cosine_decay_warmup lr_scheduler.t_initial=7", "lr_scheduler.decay_steps", 7),
        ("lr_scheduler=cosine_decay_warmup lr_scheduler.warmup_lr_init=0", "lr_scheduler.first_lr", 0.0),
        (
            "lr_scheduler=step_scheduler lr_scheduler.lr_lambda.n_halve_steps=9",
            "lr_scheduler.decay_every",
            9,
        ),
        (
            "lr_scheduler=step_scheduler lr_scheduler.lr_lambda.warmup_steps=9",
            "lr_scheduler.num_warmup_steps",
            9,
        ),
        ("trainer.val_check_interval=1.0", "trainer.val_check_interval", 1.0),
        ("trainer.val_check_interval=0.25", "trainer.val_check_interval", 0.25),
        (
            "trainer.val_check_interval=null trainer.check_val_every_n_epoch=2",
            "trainer.val_check_interval",
            None,
        ),
        (
            "callbacks.checkpoint_every_n_steps.save_top_k=3",
            "callbacks.checkpoint_every_n_steps.save_top_k",
            3,
        ),
        ("model=minimini", "model.length", 3),
    ],
)
def test_official_names(typed: str, key: str, value: object) -> None:
    cfg = composed(typed)
    expected = "generate_reflow_dataset" if value is None and key == "mode" else value
    found = OmegaConf.select(cfg, key)
    assert found == expected and type(found) is type(expected)


def test_a_variable_of_the_environment_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIT_USE_COMPILE", "1")
    assert composed("").model.compile and not composed("model.compile=False").model.compile


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("trainer.precision=32", "trainer.precision=32: all is float32; in the official programs the blocks"),
        (
            "sampling.noise_removal=True",
            "the last of sampling.steps takes the likeliest tokens (greedy); MDLM",
        ),
    ],
)
def test_what_is_not_quite_the_same_is_said(typed: str, words: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    compose_config([typed])
    assert sum(words in line for line in caplog.messages) == 1


def test_samples_that_nobody_asked_for() -> None:
    for mode in ("sample_eval", "sample_eval_with_tc", "cond_sample_eval_with_tc", "frontier"):
        said = complaint(f"mode={mode} eval.checkpoint_path=a sampling.num_sample_batches=0")
        assert said == f"sampling.num_sample_batches=0: mode={mode} is there to sample; give a number >= 1"


def test_the_tables_lead_to_what_there_is() -> None:
    known = {*all_keys(), "noise", "model"}
    for name in [*ALIASES.values(), *(w.partition("=")[0] for words in VALUES.values() for w in words)]:
        assert name in known, name
    for name in [*ALIASES, *CLAIMS]:
        assert name not in all_keys(), f"{name} hides a key"


def test_the_names_of_samplers_hold_in_lists() -> None:
    words = ["mode=frontier", "algo=mdlm", "frontier.checkpoints=x.ckpt", "frontier.predictors=ddpm,spread"]
    with pytest.raises(UserError, match=r"sampling.predictor=spread: no such sampler"):
        compose_config(words, warn=False)
    cfg = compose_config([*words[:-1], "frontier.predictors=ddpm,DDPM_cache,analytic"], warn=False)
    assert list(cfg.frontier.predictors) == ["ancestral", "ancestral_cache", "analytic"]
