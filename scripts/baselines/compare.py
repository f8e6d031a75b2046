"""The commands that compare all algorithms: see pydoc.sh."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(SCRIPTS))

from quickstart import Quickstart, main, say  # noqa: E402


class Baselines(Quickstart):
    """The quickstart's models, and those that they are compared with."""

    def parts(self) -> dict[str, Callable[[], None]]:
        return {
            "duo": self.duo,
            **super().parts(),
            "imdm": partial(self.masked_model, "imdm"),  # the long quickstart has it already
            **{name: partial(self.baseline, name) for name in ("sedd", "d3pm", "duo_base")},
        }

    def baseline(self, name: str) -> None:
        """One of the other algorithms from scratch."""
        say(f"{name}: from scratch")
        self.train(name)
        self.measure(name, name)

    def duo(self) -> None:
        """Duo, its distillation in rounds, pairs that the student writes, rectification on them."""
        self.baseline("duo")
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

    def report(self) -> None:
        from quickstart_report import MODELS, report

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
        report(self.out, looks, panels, "baselines")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], Baselines))
