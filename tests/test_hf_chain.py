"""Tiny pretrained models from MDLM to a folder that writes: every step of the chain, by its command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from test_scoring import gpt2
from test_scoring import save as save_judge

import main
from tests.pretrained import save, save_remote, text

TRAINING = (
    "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.num_sanity_val_steps=0",
    "training.ema=0.5", "eval.generate_samples=False", "trainer.limit_val_batches=1",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["modernbert", "llada"])
def test_mdlm_to_sdtt_to_redi_to_frontier_to_export(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    remote = kind == "llada"
    folder = save_remote(tmp_path / "m", kind) if remote else save(tmp_path / "m", kind)
    words = text(tmp_path)
    # ModernBERT with adapters, and first on padded rows; pairs have none.
    padded = () if remote else ("data.wrap=False",)
    own = ("model.trust_remote_code=True",) if remote else ("lora.rank=2",)
    common = (
        "model=hf", f"model.path={folder}", "model.length=12", f"data.valid={words}", "data.cache_dir=cache",
        "trainer.accelerator=cpu", "trainer.precision=32", "wandb=null", "trainer.enable_progress_bar=False",
        "sampling.num_sample_log=0", "loader.num_workers=0", "loader.global_batch_size=8",
        "loader.eval_batch_size=8", "eval.compute_generative_perplexity=False", *own,
    )  # fmt: skip
    on_text = f"data.train={words}"

    def run(*more: str) -> None:
        assert main.main([*common, *more]) == 0, capsys.readouterr().err

    run(on_text, "algo=mdlm", *padded, *TRAINING, "checkpointing.save_dir=mdlm")
    rounds = ("algo.orig_num_sampling_steps=8", "algo.min_num_sampling_steps=4", "algo.grow_dt_every=1")
    start = "training.finetune_path=mdlm/checkpoints/last.ckpt"
    run(on_text, "algo=im-sdtt", *padded, start, *rounds, *TRAINING, "checkpointing.save_dir=sdtt")
    student = "eval.checkpoint_path=sdtt/checkpoints/last.ckpt"
    pairs = ("reflow.num_reflow_samples=16", "sampling.steps=4", "reflow.save_path=pairs")
    run(on_text, "mode=generate_reflow_dataset", "algo=im-sdtt", student, *pairs)
    start = "training.finetune_path=sdtt/checkpoints/last.ckpt"
    last = ("algo=im-redi", "data=reflow-dataset-general", "reflow.save_path=pairs")
    run(*last, start, *TRAINING, "checkpointing.save_dir=redi")
    # The same command goes on, and finds everything done.
    run(*last, start, *TRAINING, "checkpointing.save_dir=redi")

    judge = save_judge(tmp_path / "judge", gpt2())
    final = (on_text, "algo=im-redi", "eval.checkpoint_path=redi/checkpoints/last.ckpt")
    grid = ("sampling.steps=1,2", "frontier.temperatures=1.0", "sampling.num_sample_batches=1")
    scored = ("eval.compute_generative_perplexity=True", f"eval.gen_ppl_eval_model_name_or_path={judge}")
    run("mode=frontier", *final, *grid, *scored)
    run("mode=ppl_eval", *final, "eval.generated_samples_path=ppl.json")
    run("mode=export", *final, "export.path=out")
    assert json.loads(Path("ppl.json").read_text())["perplexity"] > 1
    assert {"config.json", "model.safetensors", "mask_noise.safetensors", "mask_diffusion.py"} <= {
        path.name for path in Path("out").iterdir()
    }
    other = (
        save(tmp_path / "other", "bert") if remote else save(tmp_path / "other", kind, intermediate_size=48)
    )
    code = main.main([*common, *final, "mode=ppl_eval", f"model.path={other}"])
    said = capsys.readouterr().err
    assert code == 2 and (
        "is not part of the model" in said or "is missing" in said or "another model" in said
    )
