"""The scripts of the experiments: what they print composes, and says what the experiments are."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import eval_mauve
from config.cli import compose_config, read_command_line
from config.run import groups
from tests.shell import PYTHON, ROOT, SCRIPTS, dry_run, of_each, shell

pytestmark = pytest.mark.slow

STEPS, MORE_STEPS = [1, 2, 4, 8, 128], [1, 2, 4, 8, 32, 128]
MASKED = {"sampling.predictor": "ancestral_cache", "algo.noise_type": "rand"}
ONE_MASK = {**MASKED, "algo.as_mdlm": True, "sampling.mdlm_posterior": True}
LM1B = {"model.name": "small", "model.length": 128}
OWT = {"model.name": "small", "model.length": 1024, "model.softcap": -1}
LARGE = {**OWT, "model.name": "large", "model.qk_norm": False}
SUITES = {"lm1b": LM1B, "owt": OWT, "owt_large": LARGE}
DATA = {"lm1b": "lm1b-wrap", "owt": "openwebtext-split", "owt_large": "openwebtext-split"}

# script -> algorithm; sequences at once and in a step; steps, learning rate, warm-up; one mask?
TRAININGS = {
    "lm1b/train_lm1b_mdlm": ("imdm", 128, 512, 1_000_000, 3e-4, 2500, True),
    "lm1b/train_lm1b_imdm": ("imdm", 128, 512, 1_000_000, 3e-4, 2500, False),
    "lm1b/train_lm1b_imsdtt_uniform": ("im-sdtt", 16, 32, 70_001, 6e-5, 500, False),
    "lm1b/train_lm1b_sdtt": ("im-sdtt", 16, 32, 70_001, 6e-5, 500, True),
    "lm1b/train_lm1b_imredi1": ("im-redi", 128, 512, 60_000, 3e-4, 2500, False),
    "lm1b/train_lm1b_redi1": ("im-redi", 128, 512, 60_000, 3e-4, 2500, True),
    "lm1b/train_lm1b_imsdtt_uniform_redi1": ("im-redi", 128, 512, 50_001, 3e-4, 2500, False),
    "lm1b/train_lm1b_sdtt_redi1": ("im-redi", 128, 512, 50_001, 3e-4, 2500, True),
    "owt/train_owt_mdlm": ("imdm", 32, 512, 1_000_000, 3e-4, 2500, True),
    "owt/train_owt_imdm": ("imdm", 32, 512, 1_000_000, 3e-4, 2500, False),
    "owt/train_owt_imsdtt": ("im-sdtt", 16, 128, 70_001, 6e-5, 500, False),
    "owt/train_owt_sdtt": ("im-sdtt", 16, 128, 70_001, 6e-5, 500, True),
    "owt/train_owt_imsdtt_redi1": ("im-redi", 32, 512, 50_001, 3e-4, 2500, False),
    "owt/train_owt_sdtt_redi1": ("im-redi", 32, 512, 50_001, 3e-4, 2500, True),
    "owt_large/train_owt_imsdtt": ("im-sdtt", 16, 128, 70_001, 6e-5, 500, False),
    "owt_large/train_owt_sdtt": ("im-sdtt", 16, 128, 70_001, 6e-5, 500, True),
    "owt_large/train_owt_imsdtt_redi1": ("im-redi", 16, 512, 30_001, 3e-4, 2500, False),
    "owt_large/train_owt_sdtt_redi1": ("im-redi", 16, 512, 30_001, 3e-4, 2500, True),
    **{
        f"{suite}/train_{suite}_{algo}": (algo, batch, 512, 1_000_000, 3e-4, 2500, None)
        for suite, batch in (("lm1b", 128), ("owt", 32))
        for algo in ("ar", "sedd", "d3pm", "duo_base", "duo")
    },
    "lm1b/train_lm1b_duo_dcd": ("distillation", 128, 128, 50_000, 6e-5, 500, None),
    "owt/train_owt_duo_dcd": ("distillation", 16, 128, 50_000, 6e-5, 500, None),
    "lm1b/train_lm1b_duo_rectified": ("rectification", 128, 512, 50_001, 3e-4, 2500, None),
    "owt/train_owt_duo_rectified": ("rectification", 32, 512, 50_001, 3e-4, 2500, None),
}
# What the table above has no column for.
FURTHER: dict[str, dict[str, Any]] = {
    "lm1b/train_lm1b_mdlm": {"sampling.steps": STEPS},
    "lm1b/train_lm1b_imsdtt_uniform": {"sampling.steps": MORE_STEPS, "training.load_ema": True},
    "lm1b/train_lm1b_imredi1": {
        "algo.ignore_seed": True,
        "training.load_ema": True,
        "sampling.steps": MORE_STEPS,
    },
    "lm1b/train_lm1b_imsdtt_uniform_redi1": {
        "algo.ignore_seed": False,
        "training.load_ema": True,
        "sampling.steps": MORE_STEPS,
    },
    "owt/train_owt_imdm": {"model.noise_dim": 768},  # its zero-shot evaluation takes the default width
    "owt/train_owt_imsdtt": {"trainer.val_check_interval": 1000, "training.load_ema": True},
    "owt/train_owt_imsdtt_redi1": {"training.load_ema": True, "algo.ignore_seed": False},
    "owt_large/train_owt_imsdtt": {"trainer.val_check_interval": 1000, "training.load_ema": False},
    "owt_large/train_owt_imsdtt_redi1": {"training.load_ema": True},
    **{
        f"{suite}/train_{suite}_duo": {
            "algo.gumbel_tau_log10_start": -3,
            "algo.gumbel_tau_log10_end": -3,
            "algo.curriculum_start": 0,
            "algo.curriculum_end": 500_000,
            "algo.gamma_min": gammas[0],
            "algo.gamma_max": gammas[1],
        }
        for suite, gammas in (("lm1b", (-3.5, -1.75)), ("owt", (-3.55, -1.85)))
    },
    **{f"{suite}/train_{suite}_duo_dcd": {"algo.T": 512, "training.ema": 0.999} for suite in ("lm1b", "owt")},
}
# Checkpoints and pairs that no script makes: of the published weights.
FROM_ELSEWHERE = {"outputs/owt_large/mdlm.ckpt"}


@pytest.fixture(scope="module")
def printed() -> dict[str, list[list[str]]]:
    return {script: [shlex.split(line) for line in lines] for script, lines in of_each().items()}


@pytest.fixture(scope="module")
def composed(printed: dict[str, list[list[str]]]) -> dict[str, DictConfig]:
    """The configuration of each script's command; those of eval_mauve.py have none."""
    found = {}
    for script, commands in printed.items():
        (words,) = commands
        if words[:2] == [PYTHON, "main.py"]:
            found[script] = compose_config(read_command_line(words[2:]).words, warn=False)
    return found


def selected(cfg: DictConfig, expected: dict[str, Any]) -> dict[str, Any]:
    found = {key: OmegaConf.select(cfg, key) for key in expected}
    return {key: list(v) if OmegaConf.is_list(v) else v for key, v in found.items()}


def pairs_or(data: str, algo: str) -> str:
    return "reflow-dataset-general" if algo in ("im-redi", "rectification") else data


# What is printed ------------------------------------------------------------------------------------


def test_every_command_is_one_of_two_programs_and_composes(
    printed: dict[str, list[list[str]]], composed: dict[str, DictConfig]
) -> None:
    assert len(SCRIPTS) >= 78 and list(printed) == SCRIPTS
    others = {script: printed[script] for script in SCRIPTS if script not in composed}
    assert sorted(others) == ["owt/eval_mauve_owt", "owt_large/eval_mauve_owt"]
    for suite in ("owt", "owt_large"):
        ((python, program, *words),) = others[f"{suite}/eval_mauve_owt"]
        assert (python, program) == (PYTHON, "eval_mauve.py")
        path = eval_mauve._options(words).generation_path
        assert path == f"results/{suite}/cond_samples/1024-IMSDTT_ReDi1-gpt2.json"


@pytest.mark.parametrize("script", TRAININGS)
def test_trainings_are_those_of_the_table(script: str, composed: dict[str, DictConfig]) -> None:
    suite, name = script.split("/")
    algo, batch, global_batch, steps, lr, warmup, one_mask = TRAININGS[script]
    masks = {True: ONE_MASK, False: {**MASKED, "algo.as_mdlm": False, "sampling.mdlm_posterior": False}}
    expected = {
        "mode": "train",
        "algo.name": algo,
        "data.name": pairs_or(DATA[suite], algo),
        **SUITES[suite],
        **masks.get(one_mask, {}),
        "loader.batch_size": batch,
        "loader.global_batch_size": global_batch,
        "trainer.max_steps": steps,
        "optim.lr": lr,
        "lr_scheduler.name": "constant_warmup",
        "lr_scheduler.num_warmup_steps": warmup,
        "callbacks.checkpoint_every_n_steps.every_n_train_steps": 10_000,
        "trainer.log_every_n_steps": 50,
        "trainer.limit_val_batches": 2,
        "eval.gen_ppl_eval_model_name_or_path": "gpt2-large",
        "checkpointing.link_when_done": True,
        **({"algo.loss_average": "slices", "algo.loss_slice_rows": 16} if algo == "im-sdtt" else {}),
        **FURTHER.get(script, {}),
    }
    if suite == "lm1b":
        expected["model.softcap"] = 50 if one_mask is not None else -1
    if one_mask is False:
        expected.setdefault("model.noise_dim", 768 if suite == "lm1b" else 2048)
    assert selected(composed[script], expected) == expected


def test_the_table_has_all_trainings(composed: dict[str, DictConfig]) -> None:
    assert {script for script, cfg in composed.items() if cfg.mode == "train"} == set(TRAININGS)
    assert {script.split("/")[1].split("_")[0] for script in TRAININGS} == {"train"}


def test_pairs_perplexities_and_texts_are_those_of_the_table(composed: dict[str, DictConfig]) -> None:
    modes = {
        "datagen": ("generate_reflow_dataset", {"lm1b": 128, "owt": 32, "owt_large": 32}),
        "eval": ("ppl_eval", {"lm1b": 64, "owt": 16}),
        "zero": ("zero_shot", {"owt": 16}),
        "gen": ("sample_eval_with_tc", {"lm1b": 64, "owt": 32, "owt_large": 32}),
        "cond": ("cond_sample_eval_with_tc", {"owt": 8, "owt_large": 8}),
    }
    written = {"seed": 42, "sampling.steps": [1024]}
    further = {
        "datagen": {**written, "reflow.num_reflow_samples": 100_000},
        "eval": {},
        "zero": {"data.insert_valid_eos": False},
        "gen": {**written, "sampling.temperature": 1.0, "sampling.noise_removal": "ancestral"},
        "cond": {**written, "sampling.num_sample_batches": 32, "cond_sampling.num_cont_per_prefix": 5},
    }
    seen = set()
    for script, cfg in composed.items():
        suite, name = script.split("/")
        kind = name.split("_")[0]
        if kind == "train":
            continue
        mode, batches = modes[kind]
        expected = {"mode": mode, "data.name": DATA[suite], "loader.eval_batch_size": batches[suite]}
        expected |= SUITES[suite] | further[kind]
        if kind == "gen":
            expected["sampling.num_sample_batches"] = 16 if suite == "lm1b" else 32
        if "noise_type" in cfg.algo:
            one_mask = re.search(r"(_mdlm|_sdtt|_redi1|_sdtt_redi1)$", name) and "_im" not in name
            expected |= {"algo.name": "imdm", **MASKED, **(ONE_MASK if one_mask else {"algo.as_mdlm": False})}
        assert selected(cfg, expected) == expected, script
        seen.add((suite, kind))
    assert len(seen) == 3 + 5 + 3


def test_zero_shot_names_eight_sets(composed: dict[str, DictConfig]) -> None:
    named = (
        "ag_news scientific_papers_pubmed scientific_papers_arxiv lambada wikitext2 wikitext103 ptb lm1b-gpt2"
    )
    for script in ("zero_shot_imdm", "eval_owt_imdm", "gen_ppl_owt_imdm"):
        assert composed[f"owt/{script}"].model.noise_dim == 768
    for script in ("owt/zero_shot_mdlm", "owt/zero_shot_imdm"):
        assert list(composed[script].zero_shot.datasets) == named.split()
        assert set(named.split()) <= set(groups()["data"])


# How they fit together ------------------------------------------------------------------------------


def test_what_is_read_by_default_is_made_by_another_script(composed: dict[str, DictConfig]) -> None:
    made, read = set(FROM_ELSEWHERE), set()
    for cfg in composed.values():
        if cfg.mode == "train":
            made.add(f"{cfg.checkpointing.save_dir}.ckpt")
        if cfg.mode == "generate_reflow_dataset":
            made.add(cfg.reflow.save_path)
        if cfg.data.train == "reflow":
            read.add(cfg.reflow.save_path)
        read |= {cfg.training.finetune_path, cfg.eval.checkpoint_path} - {""}
    assert read <= made, "some script reads by default what none makes"
    for name in ("mdlm", "imsdtt_uniform", "imredi1", "imsdtt_uniform_redi1"):
        assert f"outputs/lm1b/{name}.ckpt" in read & made
    for name in ("mdlm", "imdm", "imsdtt_noisedim2048", "imsdtt_noisedim2048_redi1"):
        assert f"outputs/owt/{name}.ckpt" in read & made
    for name in ("mdlm", "imsdtt_noisedim2048", "imsdtt_noisedim2048_redi1"):
        assert f"outputs/owt_large/{name}.ckpt" in read
    for folder in ("lm1b/mdlm", "lm1b/imsdtt_uniform", "owt/imsdtt_noisedim2048"):
        assert f"reflow_data/{folder}" in read & made


def test_results_have_the_names_that_the_tables_look_for(composed: dict[str, DictConfig]) -> None:
    paths = {
        cfg.eval.generated_samples_path
        for cfg in composed.values()
        if cfg.mode not in ("train", "generate_reflow_dataset")
    }
    assert len(paths) == sum(
        cfg.mode not in ("train", "generate_reflow_dataset") for cfg in composed.values()
    )
    named = "MDLM IMDM IMSDTT_uniform IMReDi1 IMSDTT_uniform_ReDi1 SDTT ReDi1 SDTT_ReDi1"
    assert paths >= {f"results/lm1b/samples/1024-{name}-gpt2.json" for name in named.split()}
    for name in ("MDLM", "IMSDTT_ReDi1", "SDTT_ReDi1"):
        for suite in ("owt", "owt_large"):
            assert f"results/{suite}/samples/1024-{name}-gpt2.json" in paths
            assert f"results/{suite}/cond_samples/1024-{name}-gpt2.json" in paths
    for name in ("MDLM", "IMDM"):
        assert f"results/lm1b/ppl/{name}-LM1B-gpt2.json" in paths
        assert f"results/owt/ppl/{name}-openwebtext-split-gpt2.json" in paths
        assert f"results/owt/ppl/{name}-{{data}}-gpt2.json" in paths


# Their help and their arguments -----------------------------------------------------------------------


def test_help_is_the_head_comment_and_names_the_arguments_with_their_defaults() -> None:
    for script, lines in of_each("--help").items():
        text = (ROOT / "scripts" / f"{script}.sh").read_text().replace(" \\\n   ", "")
        assert text.startswith("#!/usr/bin/env bash\n# ") and "set -euo pipefail" in text
        assert len(text.splitlines()) <= 16, f"{script}: what is common belongs into common.sh"
        declared = re.search(r"^arguments (.*)-- ", text, flags=re.MULTILINE)[1].split()
        names, defaults = ([word.split("=")[k] for word in declared] for k in (0, 1))
        usage = " ".join([f"  bash scripts/{script}.sh", *(f"[{name}]" for name in names), "[key=value ...]"])
        assert usage in lines, script
        shown = [line.split()[1:] for line in lines if line.startswith("  defaults: ")]
        assert shown == ([defaults] if defaults else []), script
        assert any("DRY_RUN=1" in line for line in lines) and lines[0]


def test_arguments_end_at_the_first_assignment() -> None:
    script = "lm1b/train_lm1b_imsdtt_uniform"
    ((*words,),) = dry_run(script, "other.ckpt", "", "32", "seed=3", "+wandb.offline=true", "a b=c d")
    assert {"training.finetune_path=other.ckpt", "algo.noise_scale=1.0", "model.noise_dim=32"} <= set(words)
    assert words[-3:] == ["seed=3", "+wandb.offline=true", "a b=c d"]
    ((*words,),) = dry_run(script, "name=second", "seed=3")
    cfg = compose_config(words[2:], warn=False)
    assert cfg.checkpointing.save_dir == "outputs/lm1b/second"
    done = shell(f"scripts/{script}.sh", "a", "b", "c", "d", DRY_RUN="1")
    assert done.returncode == 2 and "error: d: one argument too many (there are 3)" in done.stderr
    done = shell(f"scripts/{script}.sh", "--noise_dim", "3", DRY_RUN="1")
    assert done.returncode == 2 and "error: --noise_dim: no such flag" in done.stderr
    done = shell("scripts/lm1b/eval_lm1b_baseline.sh", "dou", DRY_RUN="1")
    assert done.returncode == 2 and "error: dou: no baseline; one of ar, sedd" in done.stderr


def test_several_numbers_of_steps_are_several_files() -> None:
    first, second = dry_run("owt/gen_ppl_owt_mdlm", "1,32", "", "elsewhere")
    assert "sampling.steps=1" in first and "sampling.steps=32" in second
    assert "eval.generated_samples_path=elsewhere/samples/32-MDLM-gpt2.json" in second
    ((*mauve,),) = dry_run("owt/eval_mauve_owt", "32", "MDLM", "sample_num=64", "featurizer=folder")
    assert mauve[-4:] == ["--sample_num", "64", "--featurizer", "folder"]


@pytest.mark.parametrize("algo", ["ar", "sedd", "d3pm", "duo_base", "duo", "duo_dcd", "duo_rectified"])
def test_baselines_are_evaluated_by_name(algo: str) -> None:
    for kind, results in (("eval", "ppl"), ("gen_ppl", "samples")):
        ((*words,),) = dry_run(f"lm1b/{kind}_lm1b_baseline", algo)
        expected = {f"eval.checkpoint_path=outputs/lm1b/{algo}.ckpt"}
        expected |= {"algo=duo_base" if algo.startswith("duo") else f"algo={algo}"}
        assert expected <= set(words)
        (path,) = (Path(word.split("=")[1]) for word in words if "generated_samples_path" in word)
        assert path.parent == Path("results/lm1b") / results and f"{algo}-".lower() in path.name.lower()


# Where they run -------------------------------------------------------------------------------------


def test_devices_share_the_batch_and_the_samples() -> None:
    script = "lm1b/train_lm1b_imsdtt_uniform"
    for devices, share in (("1", 16), ("2", 16), ("8", 4)):
        ((*words,),) = dry_run(script, NGPUS=devices)
        assert {f"trainer.devices={devices}", f"loader.batch_size={share}"} <= set(words)
        assert "loader.eval_batch_size=16" in words
    ((*words,),) = dry_run("owt/cond_gen_ppl_owt_mdlm", NGPUS="8")
    assert {"trainer.devices=8", "sampling.num_sample_batches=4"} <= set(words)


def test_several_machines_by_torchrun() -> None:
    place = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first", "NGPUS": "4"}
    ((*words,),) = dry_run("owt/train_owt_imsdtt", **place)
    assert words[:3] == [PYTHON, "-m", "torch.distributed.run"] and words[8] == "main.py"
    flags = {"nnodes": "2", "nproc_per_node": "4", "node_rank": "1", "master_addr": "first"}
    assert words[3:8] == [f"--{k}={v}" for k, v in (flags | {"master_port": "29500"}).items()]
    assert {"trainer.devices=4", "trainer.num_nodes=2", "loader.batch_size=16"} <= set(words)
    assert dry_run("owt/eval_mauve_owt", **place) == [], "the first machine does it"
    done = shell("scripts/owt/train_owt_imsdtt.sh", DRY_RUN="1", NNODES="2")
    assert done.returncode == 2 and "error: NNODES=2: give NODE_RANK as well" in done.stderr


def test_tasks_of_srun() -> None:
    task = {"SLURM_STEP_ID": "0", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_PROCID": "5"}
    ((*words,),) = dry_run("owt/train_owt_imsdtt", **task)
    assert words[:2] == [PYTHON, "main.py"]
    assert {"trainer.devices=4", "trainer.num_nodes=2", "loader.batch_size=16"} <= set(words)
    assert dry_run("owt/eval_mauve_owt", **task) == []


FAKE = """#!/usr/bin/env bash
echo "$(basename "$0") ${SLURM_NTASKS:-none} $*" >> "$LOG"
case "$*" in *sampling.steps=4*) exit 7 ;; esac
exit "${CODE:-0}"
"""


@pytest.fixture()
def fakes(tmp_path: Path) -> Path:
    """Programs that note how they were called."""
    for name in ("python", "srun", "scontrol"):
        (tmp_path / name).write_text(FAKE)
        (tmp_path / name).chmod(0o755)
    return tmp_path


def test_they_stop_at_the_first_error_from_any_folder(fakes: Path) -> None:
    script = str(ROOT / "scripts" / "lm1b" / "gen_ppl_lm1b_mdlm.sh")
    settings = {"PYTHON": str(fakes / "python"), "LOG": str(fakes / "log"), "SLURM_NTASKS": "4"}
    done = shell(script, "1,4,8", folder=fakes, **settings)
    assert done.returncode == 7
    lines = (fakes / "log").read_text().splitlines()
    assert [re.search(r"sampling.steps=(\d+)", line)[1] for line in lines] == ["1", "4"]
    assert all(line.startswith("python none main.py") for line in lines), "no task of srun: it starts its own"
    assert done.stderr.startswith(f"$ {fakes}/python main.py mode=sample_eval_with_tc")


@pytest.mark.parametrize(
    ("script", "code", "requeued"),
    [
        ("owt/train_owt_imsdtt", 138, True),
        ("owt/datagen_owt_imsdtt", 138, True),
        ("owt/gen_ppl_owt_mdlm", 138, False),
        ("owt/train_owt_imsdtt", 143, False),
        ("owt/train_owt_imsdtt", 0, False),
    ],
)
def test_slurm_queues_again_what_goes_on(script: str, code: int, requeued: bool, fakes: Path) -> None:
    settings = {"PATH": f"{fakes}:/usr/bin:/bin", "LOG": str(fakes / "log"), "SLURM_JOB_ID": "17"}
    done = shell("scripts/slurm.sh", f"scripts/{script}.sh", "a", "b=c d", CODE=str(code), **settings)
    assert done.returncode == code
    called = (fakes / "log").read_text().splitlines()
    assert called[0] == f"srun none --kill-on-bad-exit=1 bash scripts/{script}.sh a b=c d"
    assert called[1:] == (["scontrol none requeue 17"] if requeued else [])


def test_slurm_tells_what_is_wrong_and_what_would_run() -> None:
    assert "sbatch scripts/slurm.sh" in shell("scripts/slurm.sh", "--help").stdout
    assert "#SBATCH" not in shell("scripts/slurm.sh").stdout
    done = shell("scripts/slurm.sh", "nowhere.sh")
    assert done.returncode == 2 and "error: nowhere.sh: no such script" in done.stderr
    done = shell("scripts/slurm.sh", "scripts/owt/train_owt_ar.sh", "seed=2", DRY_RUN="1")
    assert done.stdout == "srun --kill-on-bad-exit=1 bash scripts/owt/train_owt_ar.sh seed=2\n"


def test_the_other_scripts_have_help_as_well() -> None:
    sourced = {"common.sh", "setup_env.sh", "test.sh", "lint.sh"}
    others = [path for path in (ROOT / "scripts").rglob("*.sh") if path.name not in sourced]
    others = [p for p in others if str(p.relative_to(ROOT / "scripts").with_suffix("")) not in SCRIPTS]
    assert len(others) >= 3
    for path in others:
        done = subprocess.run(["bash", str(path), "--help"], capture_output=True, text=True)
        assert done.returncode == 0 and "bash scripts/" in done.stdout and not done.stderr, path
