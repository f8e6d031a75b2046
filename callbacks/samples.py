"""Samples at every validation: their entropy, a few texts in the log, all of them in a file."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_only

from metrics import sample_entropy
from trainer_base import TrainerBase
from utils import get_logger, write_json

log = get_logger("samples")


class SampleAtValidation(Callback):
    """Samples ``sampling.num_sample_batches`` batches at every number of steps, with the averaged weights."""

    def on_validation_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainerBase)
        if trainer.sanity_checking:
            return
        batch = trainer.val_dataloaders.batch_sampler.batch_size
        number = batch * module.config.sampling.num_sample_batches
        for num_steps in module.step_counts():
            with module.ema_weights():
                samples = module.sample(
                    number, num_steps, first_row=trainer.global_rank * number, batch_size=batch
                )
            texts = module.tokenizer.batch_decode(samples.tokens)
            entropy = sample_entropy(samples.tokens).mean()
            module.log(f"val/sample_entropy_T{num_steps}", entropy, sync_dist=True)
            self._record(trainer, module, num_steps, texts)

    @rank_zero_only
    def _record(self, trainer: L.Trainer, module: TrainerBase, num_steps: int, texts: list[str]) -> None:
        for text in texts[: module.config.sampling.num_sample_log]:
            log.info("sample, steps %d: %s", num_steps, text)
        folder = Path(trainer.default_root_dir) / "samples"
        write_json(folder / f"step{trainer.global_step}-T{num_steps}.json", texts)
