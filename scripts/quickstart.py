"""The quickstart's commands, one after another in one process: see quickstart.sh.

Each is what a user types as ``python main.py ...``, and is printed so; the first that fails ends it.
"""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from main import main as run_command  # noqa: E402

STEPS = "1,2,4,8,16,64"
CLASSICAL = ("algo.as_mdlm=True",)


class Failed(Exception):
    """A command ended with this exit code."""


@dataclass(frozen=True)
class Quickstart:
    """Where everything goes, whether it is the long version, and what the user typed."""

    out: Path
    full: bool
    overrides: tuple[str, ...]

    def all(self) -> None:
        """Train, distil, evaluate everything that is not there yet."""
        self.judge()
        self.masked_model("mdlm")
        if self.full:
            self.masked_model("imdm")
        self.distil("im")
        self.distil("", *CLASSICAL)

    def judge(self) -> None:
        """The autoregressive model that judges the samples of all others, and its own.

        It is trained no longer in the long version: on so little text it would learn that by heart.
        """
        say("ar: the judge of all samples")
        self.run("ar", "ar")
        self.evaluate("ar", "ar", "ppl", "mode=ppl_eval")
        self.evaluate("ar", "ar", "samples", "mode=sample_eval", *self.judged())

    def masked_model(self, name: str) -> None:
        """MDLM or IMDM from scratch."""
        say(f"{name}: masked diffusion")
        self.run(name, name, *self.longer(4500))
        self.write(name, name)

    def distil(self, prefix: str, *arguments: str) -> None:
        """SDTT from MDLM, pairs that it writes, ReDi on them; ``arguments`` may ask for a single mask."""
        sdtt, redi, pairs = f"{prefix}sdtt", f"{prefix}redi", self.out / f"pairs_{prefix}sdtt"
        say(f"{sdtt}: distillation, in rounds from 64 steps to 2")
        start = (f"training.finetune_path={self.checkpoint('mdlm')}", *self.longer(2500))
        rounds = ("algo.grow_dt_every=500",) if self.full else ()
        self.run(sdtt, "imsdtt", *start, *rounds, *arguments)
        self.write(sdtt, "imsdtt", *arguments)
        say(f"{redi}: pairs written by {sdtt}, then training on them")
        self.make_pairs(sdtt, "imsdtt", pairs, *arguments)
        start = (f"training.finetune_path={self.checkpoint(sdtt)}", *self.longer(3500))
        self.run(redi, "imredi", f"reflow.save_path={pairs}", *start, *arguments)
        self.write(redi, "imredi", *arguments)

    def make_pairs(self, name: str, experiment: str, pairs: Path, *arguments: str) -> None:
        """Noise and the text that a model writes from it."""
        made = (
            "mode=generate_reflow_dataset",
            f"eval.checkpoint_path={self.checkpoint(name)}",
            f"reflow.num_reflow_samples={2_048 if self.full else 512}",
            "sampling.steps=64",
            "loader.eval_batch_size=256",
            f"reflow.save_path={pairs}",
        )
        self.run(name, experiment, *made, *arguments)

    def write(self, name: str, experiment: str, *arguments: str) -> None:
        """Bits per character of a masked model, and its samples at every number of steps, in both orders."""
        self.evaluate(name, experiment, "ppl", "mode=ppl_eval", "eval.nelbo=count", "data=pydoc", *arguments)
        samples = self.samples(*arguments)
        self.evaluate(name, experiment, "samples", *samples)
        self.evaluate(name, experiment, "spread", *samples, "sampling.order=spread")

    def samples(self, *arguments: str) -> tuple[str, ...]:
        """What asks for judged samples at every number of steps."""
        return ("mode=sample_eval", f"sampling.steps={STEPS}", "data=pydoc", *self.judged(), *arguments)

    def evaluate(self, name: str, experiment: str, result: str, *arguments: str) -> None:
        """One result file, unless it is there and not older than the model's weights.

        With overrides nobody knows what it was made with: then it is made anew.
        """
        path, checkpoint = self.out / name / "results" / f"{result}.json", self.checkpoint(name)
        fresh = path.exists() and checkpoint.exists() and path.stat().st_mtime >= checkpoint.stat().st_mtime
        if self.overrides or not fresh:
            where = (f"eval.checkpoint_path={checkpoint}", f"eval.generated_samples_path={path}")
            self.run(name, experiment, *where, *arguments)

    def judged(self) -> tuple[str, ...]:
        return (
            "sampling.num_sample_batches=2",
            "eval.compute_generative_perplexity=True",
            f"eval.gen_ppl_eval_model_name_or_path={self.checkpoint('ar')}",
            "eval.perplexity_batch_size=32",
        )

    def longer(self, steps: int) -> tuple[str, ...]:
        return (f"trainer.max_steps={steps}",) if self.full else ()

    def checkpoint(self, name: str) -> Path:
        return self.out / name / "checkpoints" / "last.ckpt"

    def run(self, name: str, experiment: str, *arguments: str) -> None:
        """One command; what the user typed comes last and wins."""
        words = [
            f"experiment=pydoc_{experiment}",
            f"name={name}",
            f"checkpointing.save_dir={self.out / name}",
        ]
        words += [*arguments, *self.overrides]
        print(f"$ python main.py {shlex.join(words)}", flush=True)
        if code := run_command(words):
            raise Failed(code)


def say(text: str) -> None:
    """A heading in what is printed."""
    print(f"\n== {text}", flush=True)


def parse(words: list[str], kind: type[Quickstart]) -> Quickstart:
    """The words after the script's name."""
    full = words[:1] == ["--full"]
    folder = os.environ.get("QUICKSTART_DIR") or f"outputs/quickstart{'_full' if full else ''}"
    return kind(Path(folder), full, tuple(words[full:]))


def main(words: list[str]) -> int:
    """Run everything and print the summary; returns the exit code."""
    quickstart = parse(words, Quickstart)
    try:
        quickstart.all()
    except Failed as failed:
        return failed.args[0]
    say("Summary")
    from quickstart_report import report  # matplotlib: a mistake above is told without waiting for it

    report(quickstart.out)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
