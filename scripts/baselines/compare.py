"""The commands that compare all algorithms, one after another in one process: see pydoc.sh."""

from __future__ import annotations

import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SCRIPTS))

from quickstart import Failed, Quickstart, parse, say  # noqa: E402


class Baselines(Quickstart):
    """The quickstart's models, and those that they are compared with."""

    def all(self) -> None:
        super().all()
        if not self.full:  # the long quickstart has it already
            self.masked_model("imdm")
        for name in ("sedd", "d3pm", "duo_base", "duo"):
            say(f"{name}: from scratch")
            self.run(name, name, *self.longer(4500))
            self.measure(name, name)
        self.distil_duo()

    def distil_duo(self) -> None:
        """Duo's distillation in rounds, then pairs that the student writes, then rectification on them."""
        say("dcd: Duo's distillation, in rounds from 64 steps to 2")
        rounds = ("algo.update_teacher_every=500",) if self.full else ()
        start = (f"training.finetune_path={self.checkpoint('duo')}", *self.longer(2500), *rounds)
        self.run("dcd", "dcd", *start)
        self.measure("dcd", "dcd")
        say("rectification: pairs written by dcd, then training on them")
        pairs = self.out / "pairs_dcd"
        self.make_pairs("dcd", "dcd", pairs)
        start = (f"training.finetune_path={self.checkpoint('dcd')}", *self.longer(3500))
        self.run("rectification", "rectification", f"reflow.save_path={pairs}", *start)
        self.measure("rectification", "rectification")

    def measure(self, name: str, experiment: str) -> None:
        """Bits per character (a bound), and judged samples."""
        self.evaluate(name, experiment, "ppl", "mode=ppl_eval", "data=pydoc")
        self.evaluate(name, experiment, "samples", *self.samples())


def main(words: list[str]) -> int:
    """Run everything and print the summary; returns the exit code."""
    baselines = parse(words, Baselines)
    try:
        baselines.all()
    except Failed as failed:
        return failed.args[0]
    say("Summary")
    from quickstart_report import MODELS, report  # matplotlib: a mistake above is told without waiting for it

    looks = {
        "mdlm": MODELS["mdlm"],
        "imdm": MODELS["imdm"],
        "sedd": ("SEDD", "#3b9e5b", "-"),
        "d3pm": ("D3PM", "#b8860b", "-"),
        "duo_base": ("Duo, no curriculum", "#c2417c", "--"),
        "duo": ("Duo", "#c2417c", "-"),
        **MODELS,
        "dcd": ("Duo + DCD", "#c2417c", "-."),
        "rectification": ("Duo + DCD + rectification", "#7a1f4d", "-."),
    }
    scratch = ("mdlm", "imdm", "sedd", "d3pm", "duo_base", "duo")
    distilled = tuple(name for name in looks if name not in scratch)
    panels = (
        ("runs", "generative_ppl", "generative perplexity, from scratch", scratch),
        ("runs", "generative_ppl", "generative perplexity, distilled", distilled),
        ("runs", "entropy", "sample entropy (nats)", ()),
    )
    report(baselines.out, looks, panels, "baselines")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
