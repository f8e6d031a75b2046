"""The quickstart's commands: see quickstart.sh.

Each is what a user types as ``python main.py ...``, and is printed so; the first that fails ends it.
First come the two models that all need; then parts that need nothing of each other, side by side.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from side_by_side import end_with_parent, run_apart, side_by_side  # noqa: E402

from main import INTERRUPTED  # noqa: E402
from main import main as run_command  # noqa: E402

STEPS = "1,2,4,8,16,64"
FEWER = "1,2,4,8,16"  # the order of unmasking matters little beyond
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
        say("mdlm: masked diffusion")
        self.train("mdlm")
        self.side_by_side()

    def judge(self) -> None:
        """The autoregressive model that judges the samples of all others, and its own.

        It is trained no longer in the long version: on so little text it would learn that by heart.
        """
        say("ar: the judge of all samples")
        self.run("ar", "ar")

    def parts(self) -> dict[str, Callable[[], None]]:
        """What can be done side by side once AR and MDLM are there, by name; the longest first."""
        longer = {"imdm": lambda: self.masked_model("imdm")} if self.full else {}
        return {
            "infinite": lambda: self.distil("im"),
            "classical": lambda: self.distil("", *CLASSICAL),
            **longer,
            "measured": self.measure_first,
        }

    def side_by_side(self) -> None:
        """All parts, each in a process of its own."""
        import torch

        script = str(Path(sys.modules[type(self).__module__].__file__ or "").resolve())
        words = [*(["--full"] if self.full else []), *self.overrides]
        commands = {name: [sys.executable, script, "--part", name, *words] for name in self.parts()}
        if code := side_by_side(commands, torch.get_num_threads()):
            raise Failed(code)

    def measure_first(self) -> None:
        """What the two models that came first can do."""
        say("ar, mdlm: measured")
        self.evaluate("ar", "ar", "ppl", "mode=ppl_eval")
        self.evaluate("ar", "ar", "samples", "mode=sample_eval", *self.judged())
        self.write("mdlm", "mdlm")

    def masked_model(self, name: str) -> None:
        """MDLM or IMDM from scratch."""
        say(f"{name}: masked diffusion")
        self.train(name)
        self.write(name, name)

    def train(self, name: str) -> None:
        """A model from scratch."""
        self.run(name, name, *self.longer(4500))

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
        number, steps = (2_048, 64) if self.full else (320, 32)
        made = (
            "mode=generate_reflow_dataset",
            f"eval.checkpoint_path={self.checkpoint(name)}",
            f"reflow.num_reflow_samples={number}",
            f"sampling.steps={steps}",
            "loader.eval_batch_size=256",
            f"reflow.save_path={pairs}",
        )
        self.run(name, experiment, *made, *arguments)

    def write(self, name: str, experiment: str, *arguments: str) -> None:
        """Bits per character of a masked model, and its samples at every number of steps, in both orders."""
        self.evaluate(name, experiment, "ppl", "mode=ppl_eval", "eval.nelbo=count", "data=pydoc", *arguments)
        self.evaluate(name, experiment, "samples", *self.samples(*arguments))
        spread = ("sampling.order=spread", *arguments)
        steps = STEPS if self.full else FEWER
        self.evaluate(name, experiment, "spread", *self.samples(*spread, steps=steps))

    def samples(self, *arguments: str, steps: str = STEPS) -> tuple[str, ...]:
        """What asks for judged samples at every number of steps."""
        return ("mode=sample_eval", f"sampling.steps={steps}", "data=pydoc", *self.judged(), *arguments)

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

    def report(self) -> None:
        """Tables, figure and texts of what is there."""
        from quickstart_report import report  # matplotlib: a mistake is told without waiting for it

        report(self.out)

    def run(self, name: str, experiment: str, *arguments: str) -> None:
        """One command; what the user typed comes last and wins."""
        words = [
            f"experiment=pydoc_{experiment}",
            f"name={name}",
            f"checkpointing.save_dir={self.out / name}",
        ]
        words += [*arguments, *self.overrides]
        print(f"$ python main.py {shlex.join(words)}", flush=True)
        apart = [sys.executable, str(ROOT / "main.py"), *words]
        if code := run_command(words) if self.one_process() else run_apart(apart):
            raise Failed(code)

    def one_process(self) -> bool:
        """Whether all commands can share a process, which saves starts; on several devices they cannot."""
        import torch

        keys = ("trainer.devices=", "trainer.num_nodes=")
        return not torch.cuda.is_available() and not any(word.startswith(keys) for word in self.overrides)


def say(text: str) -> None:
    """A heading in what is printed."""
    print(f"\n== {text}", flush=True)


def parse(words: list[str], kind: type[Quickstart]) -> Quickstart:
    """The words after the script's name."""
    full = words[:1] == ["--full"]
    folder = os.environ.get("QUICKSTART_DIR") or f"outputs/quickstart{'_full' if full else ''}"
    return kind(Path(folder), full, tuple(words[full:]))


def main(words: list[str], kind: type[Quickstart] = Quickstart) -> int:
    """Run everything and print the summary, or (``--part NAME``) one of the parts; returns the exit code."""
    part = words[1] if words[:1] == ["--part"] else None
    quickstart = parse(words[2 if part else 0 :], kind)
    try:
        if part:
            end_with_parent()
            quickstart.parts()[part]()
        else:
            quickstart.all()
    except Failed as failed:
        return failed.args[0]
    except KeyboardInterrupt:
        return INTERRUPTED  # the command that it reached has told it
    if not part:
        say("Summary")
        quickstart.report()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
