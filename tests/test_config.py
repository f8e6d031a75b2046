"""The configuration: every shipped file composes, every mistake of a user is one line that names the key."""

from __future__ import annotations

import inspect
import logging
import re

import pytest
import quick_compose
from omegaconf import OmegaConf

from config import cli
from config.cli import compose_config
from config.help import help_text
from config.keys import CONFIG_DIR, all_keys, groups, owner_choices
from config.official import DROPPED
from config.overrides import ELSEWHERE
from config.schema import MODES

ROOT = CONFIG_DIR.parent
CHOICES = [
    f"{group}=[{choice}]" if group == "callbacks" else f"{group}={choice}"
    for group, choices in groups().items()
    for choice in choices
]


@pytest.fixture(autouse=True)
def _without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_compose", quick_compose.compose)


def complaint(*overrides: str) -> str:
    """The message about a wrong command line; it must be one line."""
    with pytest.raises(ValueError) as caught:
        compose_config(overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("choice", CHOICES)
def test_every_shipped_file_composes(choice: str) -> None:
    group, name = re.fullmatch(r"(\w+)=\[?([\w-]+)\]?", choice).groups()
    if choice == "model=hf":  # it needs to be told which model; tests/test_hf.py composes it
        assert complaint(choice).startswith("model.path: has no value; give a folder")
        return
    cfg = compose_config([choice], warn=False)
    if group in ("algo", "model", "noise", "data", "lr_scheduler", "strategy"):
        assert cfg[group].name == name
    assert not OmegaConf.missing_keys(cfg)


@pytest.mark.parametrize("algo", groups()["algo"])
@pytest.mark.parametrize("debug", groups()["debug"])
def test_debug_goes_with_every_algorithm(algo: str, debug: str) -> None:
    cfg = compose_config([f"algo={algo}", f"debug={debug}"])
    assert cfg.algo.name == algo
    assert cfg.wandb is None


@pytest.mark.parametrize(
    ("size", "width", "blocks", "heads"),
    [("tiny", 256, 8, 8), ("small", 768, 12, 12), ("medium", 1024, 24, 16), ("large", 1536, 24, 16)],
)
def test_model_sizes(size: str, width: int, blocks: int, heads: int) -> None:
    model = compose_config([f"model={size}"]).model
    assert (model.hidden_size, model.n_blocks, model.n_heads, model.cond_dim) == (width, blocks, heads, 128)
    assert (model.noise_dim, model.dropout, model.length, model.softcap) == (width, 0.1, 1024, -1)


def test_documented_defaults() -> None:
    cfg = compose_config()
    assert (cfg.mode, cfg.seed, cfg.name, cfg.data.name, cfg.model.name) == (
        "train",
        1,
        "duo_base",
        "openwebtext",
        "small",
    )
    assert cfg.checkpointing.resume_ckpt_path == "./outputs/openwebtext/duo_base/checkpoints/last.ckpt"
    assert cfg.sampling.steps == [1000]
    assert cfg.loader.eval_global_batch_size == cfg.loader.global_batch_size == 512
    assert (cfg.optim.lr, cfg.training.ema, cfg.trainer.max_steps) == (3e-4, 0.9999, 1_000_000)
    assert cfg.wandb.project == "IMDM" and cfg.wandb.name == "duo_base"


@pytest.mark.parametrize(
    ("typed", "steps"),
    [
        ("8", [8]),
        ("1,2,4", [1, 2, 4]),
        ("[1,2,4]", [1, 2, 4]),
        ("'1,2,4,8,128'", [1, 2, 4, 8, 128]),
        ("[16]", [16]),
    ],
)
def test_sampling_steps_are_a_list_of_integers(typed: str, steps: list[int]) -> None:
    found = compose_config([f"sampling.steps={typed}"]).sampling.steps
    assert found == steps and all(type(step) is int for step in found)


@pytest.mark.parametrize("typed", ["0", "1,x", "[]", "-1", "1.5", "4,0", "null", "true"])
def test_wrong_steps(typed: str) -> None:
    assert complaint(f"sampling.steps={typed}").startswith("sampling.steps=")


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        ("+trainer.val_check_interval=1000", "trainer.val_check_interval", 1000),
        ("++wandb.offline=true", "wandb.offline", True),
        ("+experiment=pydoc_imdm", "algo.name", "imdm"),
        ("experiment=pydoc_imdm", "data.name", "pydoc"),
        ("+algo=imdm", "algo.num_mask", 0),
        ("experiment=null", "algo.name", "duo_base"),
        ("wandb=null", "wandb", None),
        ("callbacks=null", "callbacks.checkpoint_monitor", None),
        ("wandb.name=abc", "name", "abc"),
        ("wandb.tags=a,b", "wandb.tags", ["a", "b"]),
        ("trainer.max_steps=1e6", "trainer.max_steps", 1_000_000),
        ("trainer.devices=0,1", "trainer.devices", "0,1"),
        ("trainer.limit_val_batches=2", "trainer.limit_val_batches", 2),
        ("trainer.gradient_clip_val=null", "trainer.gradient_clip_val", None),
        ("trainer.precision=32", "trainer.precision", "32"),
        ("loader.num_workers=auto", "loader.num_workers", None),
        ("loader.num_workers=-1", "loader.num_workers", None),
        ("training.finetune_path=a/epoch=3-step=5.ckpt", "training.finetune_path", "a/epoch=3-step=5.ckpt"),
        ("eval.generated_samples_path=it's (1), b.json", "eval.generated_samples_path", "it's (1), b.json"),
        ("eval.generated_samples_path=C:\\out\\", "eval.generated_samples_path", "C:\\out\\"),
        ("name=007", "name", "007"),
        ("name=1e5", "name", "1e5"),
        ("sampling.p_nucleus=0.9", "sampling.use_p_nucleus", True),
        ("", "mode", "train"),
    ],
)
def test_what_people_type_is_understood(typed: str, key: str, value: object) -> None:
    assert OmegaConf.select(compose_config([typed]), key) == value


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("smapling.steps=3", "smapling.steps: unknown key; did you mean sampling.steps?"),
        (
            "loader.global_batch_size=abc",
            "loader.global_batch_size=abc: not an integer; give an integer like 512",
        ),
        (
            "model=smal",
            "model=smal: unknown choice; one of hf, large, medium, minimini, small, synthetic, tiny",
        ),
        (
            "algo.noise_type=rand algo=mdlm",
            "algo.noise_type: unknown key with algo=mdlm; it belongs to algo=im-redi or",
        ),
        ("lr=1", "lr: not a key here; use optim.lr"),
        ("model.lenght=9", "model.lenght: unknown key; did you mean model.length?"),
        ("noise_scale=1", "noise_scale: unknown key; did you mean algo.noise_scale?"),
        ("train", "train: not of the form key=value; did you mean mode=train?"),
        ("mode = train", "mode: not of the form key=value; write mode=... without blanks"),
        ("~wandb", "~wandb: settings cannot be removed; set wandb=null or choose another group"),
        ("mode=trian", f"mode=trian: unknown value; one of {', '.join(MODES)}"),
        ("seed=null", "seed=null: cannot be null; give an integer like 1"),
        ("seed.x=1", "seed.x: unknown key; did you mean seed?"),
        ("loader=5", "loader=5: a section, not a value; set its keys, like loader.global_batch_size=..."),
        (
            "optim.lr=1e-3,1e-4",
            "optim.lr=1e-3,1e-4: several values need --multirun; give one value, or add --multirun",
        ),
        ("wandb=null wandb.offline=True", "wandb.offline: wandb is switched off; add wandb=default"),
        (
            "callbacks=[] callbacks.checkpoint_monitor.mode=max",
            "callbacks.checkpoint_monitor.mode: this callback is not chosen; add it to callbacks=[...]",
        ),
        ("data.source.pth=a", "data.source.pth: unknown key; did you mean data.source.path?"),
        ("data.source=a", "data.source=a: a section, not a value; set its keys, like data.source.path=..."),
        ("name=${algo.foo}", "name: Interpolation key 'algo.foo' not found"),
        ("name=x${", "name='x${': ${...} is not closed"),
        ("optim.lr=(", "optim.lr=(: cannot be read"),
        ("loader.drop_last=maybe", "loader.drop_last=maybe: not True or False; give True or False"),
    ],
)
def test_mistakes_are_one_line(typed: str, message: str) -> None:
    assert complaint(*typed.split(" ")).startswith(message)


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("algo=imdm algo.num_mask=4 algo.noise_type=learnable", "algo.num_mask=4"),
        ("algo=imdm algo.noise_type=learnable algo.noise_scale=2", "algo.noise_scale=2.0"),
        ("algo=imdm algo.alpha_min=0.5 algo.alpha_max=0.5", "algo.alpha_min=0.5"),
        ("algo.T=1000", "algo.T=1000"),
        ("sampling.predictor=first_hitting sampling.noise_removal=greedy", "sampling.noise_removal=greedy"),
        ("sampling.predictor=first_hitting sampling.noise_removal=none", "sampling.noise_removal=none"),
        ("algo=im-redi training.mask_sampling=count", "training.mask_sampling=count"),
        ("sampling.p_nucleus=0", "sampling.p_nucleus=0.0"),
        ("sampling.p_nucleus=1.1", "sampling.p_nucleus=1.1"),
        ("sampling.temperature=0", "sampling.temperature=0.0"),
        ("model.n_heads=7", "model.n_heads=7"),
        ("model.hidden_size=36 model.n_heads=12", "model.n_heads=12"),
        ("model.length=2", "model.length=2"),
        ("training.ema=1", "training.ema=1.0"),
        ("training.ema=-0.1", "training.ema=-0.1"),
        ("algo=mdlm training.mask_sampling=count training.loss_type=low_var", "training.loss_type=low_var"),
        (
            "algo=mdlm training.mask_sampling=count algo.time_conditioning=True",
            "training.mask_sampling=count",
        ),
        ("algo=imdm training.mask_sampling=count algo.alpha_max=0.9", "training.mask_sampling=count"),
        ("algo=mdlm eval.nelbo=count algo.time_conditioning=True", "eval.nelbo=count"),
        ("algo=duo algo.integral_cache_path=a.pkl", "algo.integral_cache_path=a.pkl"),
        ("algo=im-sdtt algo.min_num_sampling_steps=2000", "algo.min_num_sampling_steps=2000"),
        ("algo=im-sdtt algo.use_ema_on_growth=True training.ema=0", "algo.use_ema_on_growth=True"),
        ("algo=im-sdtt algo.grow_dt_every=0", "algo.grow_dt_every=0"),
        ("algo=im-sdtt algo.num_distill_steps=0", "algo.num_distill_steps=0"),
        ("algo=im-sdtt algo.distill_mode=l2", "algo.distill_mode=l2"),
        ("algo=im-sdtt algo.teacher_times=linear", "algo.teacher_times=linear"),
        ("mode=ppl_eval", "eval.checkpoint_path="),
        ("mode=sample_eval", "eval.checkpoint_path="),
        ("strategy=single_device trainer.devices=2", "trainer.devices=2"),
        ("strategy=single_device trainer.num_nodes=2", "trainer.num_nodes=2"),
        ("trainer.devices=two", "trainer.devices=two"),
        ("trainer.devices=0", "trainer.devices=0"),
        ("trainer.limit_val_batches=2.0", "trainer.limit_val_batches=2.0"),
        ("lr_scheduler=cosine_decay_warmup optim.lr=1e-6", "lr_scheduler.min_lr="),
        ("algo=[mdlm,imdm]", "algo=[mdlm,imdm]"),
        ("model=[small]", "model=[small]"),
        ("experiment=[pydoc_mdlm,pydoc_ar]", "experiment=[pydoc_mdlm,pydoc_ar]"),
        ("name=", "name="),
        ("checkpointing.save_dir=", "checkpointing.save_dir="),
        ("data.cache_dir=", "data.cache_dir="),
        ("hydra.run.dir=", "checkpointing.save_dir="),
        ("optim.lr=inf", "optim.lr=inf"),
        ("optim.lr=nan", "optim.lr=nan"),
        ("model.softcap=nan", "model.softcap=nan"),
        ("trainer.limit_train_batches=inf", "trainer.limit_train_batches=inf"),
        ("trainer.devices=[0,0]", "trainer.devices=[0, 0]"),
        ("trainer.devices=0,0", "trainer.devices=0,0"),
        ("trainer.devices=[true]", "trainer.devices=[True]"),
        ("seed=9223372036854775808", "seed=9223372036854775808"),
        ("algo=duo algo.gumbel_tau_log10_start=400", "algo.gumbel_tau_log10_start=400.0"),
        ("model.hidden_size=2000000000", "model.hidden_size=2000000000"),
        ("model.hidden_size=98304 model.n_blocks=100", "model.hidden_size=98304"),
        ("reflow.num_reflow_samples=1e15", "reflow.num_reflow_samples=1000000000000000"),
        ("sampling.steps=1,100000000", "sampling.steps=1,100000000"),
        ("trainer.precision=16", "trainer.precision=16"),
    ],
)
def test_settings_that_cannot_hold(typed: str, key: str) -> None:
    message = complaint(*typed.split())
    assert message.startswith(key)
    assert re.fullmatch(r"[^:]+: .+; .+", message), "key=value: problem; hint"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("training.load_ema=True", "training.load_ema=True has no effect"),
        ("eval.checkpoint_path=a.ckpt", "eval.checkpoint_path has no effect"),
        ("sampling.use_float64=False", "sampling.draws=float32 loses rare tokens"),
        ("sampling.fix_eps=True", "sampling.fix_eps=True has no effect with algo=duo_base"),
        ("algo=mdlm sampling.fix_eps=True", "sampling.fix_eps=True has no effect with algo=mdlm"),
        ("sampling.p_nucleus=0.9 sampling.use_p_nucleus=False", "sampling.p_nucleus has no effect"),
        ("sampling.predictor=first_hitting sampling.steps=1,2", "sampling.steps has no effect"),
        ("mode=export eval.checkpoint_path=a.ckpt trainer.devices=2", "uses one device"),
        ("trainer.max_steps=10", "optim.lr is never reached"),
        ("debug=fast checkpointing.resume_ckpt_path=a.ckpt", "resume_ckpt_path has no effect while"),
        ("algo=im-sdtt", "the first teacher is an untrained network"),
        ("algo=distillation", "the first teacher is an untrained network"),
        ("algo=distillation training.finetune_path=a algo.linear_growth_max=0.5", "has no effect without"),
        ("algo=im-sdtt training.finetune_path=a training.loss_type=low_var", "algo.distill_mode is the loss"),
        ("algo=im-sdtt training.finetune_path=a algo.teacher_times=exact", "makes no difference"),
        ("algo=im-sdtt training.finetune_path=a algo.num_distill_steps=1", "and dt never grows"),
        ("algo=im-sdtt training.finetune_path=a algo.as_mdlm=True algo.sdtt_fix_eps=False", "carry no noise"),
        ("algo=im-redi algo.alpha_max=0.9", "algo.alpha_min/alpha_max have no effect with algo=im-redi"),
        ("algo=im-sdtt training.finetune_path=a algo.alpha_min=0.1", "no effect with algo=im-sdtt, which"),
        (
            "algo=im-sdtt training.finetune_path=a algo.loss_average=positions algo.loss_slice_rows=4",
            "no slices",
        ),
        ("algo=im-redi algo.as_mdlm=True algo.ignore_seed=True", "algo.ignore_seed has no effect"),
        ("algo=ar eval.nelbo=count", "eval.nelbo=count has no effect with algo=ar"),
        ("algo=ar model.softcap=50", "model.softcap=50 has no effect with algo=ar"),
        ("algo=d3pm training.sampling_eps=0.1", "training.sampling_eps has no effect with algo.T=1000"),
        ("algo=sedd sampling.fix_eps=True", "sampling.fix_eps=True has no effect with algo=sedd"),
        ("algo=ar training.loss_type=low_var sampling.steps=1,2", "sampling.steps=1,2 have no effect with"),
    ],
)
def test_harmless_settings_warn(typed: str, words: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    compose_config(typed.split())
    assert sum(words in line for line in caplog.messages) == 1


def test_defaults_and_quickstarts_warn_about_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    for overrides in (
        [],
        ["algo=imdm"],
        ["algo=ar"],
        ["experiment=pydoc_mdlm"],
        ["experiment=pydoc_imdm"],
        ["debug=fast"],
    ):
        compose_config(overrides)
    assert not caplog.messages


def test_tables_of_names_do_not_shadow_keys() -> None:
    """A key that arrives with its feature must leave the tables that refuse it; the advice must exist."""
    for name in all_keys():
        assert name not in ELSEWHERE and name not in DROPPED
    for advice in ELSEWHERE.values():
        for name in re.findall(r"\b[a-z]+\.[a-z_]+(?=[ ,;=]|$)", advice):
            assert name in all_keys(), advice


def test_every_key_belongs_to_a_choice_and_is_read_somewhere() -> None:
    """No key is accepted that does nothing: its name occurs in the program outside of config/."""
    sources = "\n".join(
        path.read_text(encoding="utf-8")
        for path in ROOT.rglob("*.py")
        if path.relative_to(ROOT).parts[0] not in ("config", "tests") and ".venv" not in path.parts
    )
    passed_on_whole = ("trainer.", "wandb.")  # to Lightning and wandb, checked by their signatures
    read_here = {"sampling.use_float64", "algo.T", "callbacks.learning_rate_monitor.logging_interval"}
    for name in all_keys():
        if name.split(".")[0] in ("algo", "model", "noise", "data", "lr_scheduler"):
            assert owner_choices(name), name
        if name.startswith(passed_on_whole) or name in read_here:
            continue
        leaf = name.rsplit(".", 1)[-1]
        assert re.search(rf"[.\"']{leaf}\b", sources), f"{name} is read nowhere"


def test_trainer_keys_are_lightnings() -> None:
    from lightning import Trainer

    known = set(inspect.signature(Trainer.__init__).parameters)
    assert {name.split(".")[1] for name in all_keys() if name.startswith("trainer.")} <= known


def test_modes_and_algorithms_are_the_programs() -> None:
    from algo import ALGORITHMS
    from tasks import MODES as tasks

    assert set(tasks) == set(MODES)
    assert set(ALGORITHMS) == set(groups()["algo"])


def test_help_lists_every_key_and_choice() -> None:
    text = help_text()
    assert all(f"  {name}=" in text for name in all_keys())
    assert all(choice in text for choices in groups().values() for choice in choices)
